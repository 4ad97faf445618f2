# SPDX-License-Identifier: Apache-2.0
"""Word tables for the captions: what to skip, what to rename, which folder means which noun."""

SKIPPED_FOLDERS = (
    r"^gui", r"^player", r"^effect", r"floor", r"wall", r"water", r"blood", r"tentacles",
    r"icons", r"numbers", r"spells", r"brands", r"gateways", r"traps", r"^worn", r"^misc",
    r"shops", r"vaults", r"gold$",
)  # fmt: skip
SKIPPED_FILES = (
    r"^i-", r"^draco-job", r"overlay", r"pentagram", r"^slot", r"mold_", r"-flame", r"^unseen",
    r"test_spawner", r"_water$", r"sleeping", r"goldaura", r"sparkles", r"drain\d|drain_red",
    r"floor_sand", r"dngn_exit", r"wax_wall", r"^lava$", r"flesh$", r"_trap|trap_", r"gate_",
    r"grate", r"suppressed", r"acid_venom", r"melded", r"^dngn_detected", r"misc_deck",
    r"(kraken|lernaean)_tentacle", r"kraken_tentacle", r"teleporter", r"^stairs|_stairs",
    r"_gone$", r"^unseen", r"pulsating", r"fulminant", r"chunk", r"monk_ghost", r"orifice",
    r"altar_base|statue_base|^pedestal$|stump", r"hell_wizard_", r"labrat", r"large_box$",
    r"sarcophagus_pedestal", r"dot_|todo|error|cursor", r"^shadow$|shadow_dormant", r"transit",
    r"makhleb_flame[3-8]", r"xom[2-7]", r"jiyva(0[3-9]|1)", r"eye_filled",
)  # fmt: skip

# The first pattern that a folder matches gives the noun; with "?" a noun in the name wins.
FOLDERS = {
    r"potion": "potion", r"item/ring": "ring", r"^rings": "ring", r"amulet": "amulet",
    r"scroll": "scroll", r"staff": "staff", r"wand": "wand", r"item/rod": "rod",
    r"book": "book", r"food": "food?", r"weapon": "weapon?", r"armour/bardings": "barding",
    r"armour/shields": "shield", r"headgear": "helmet?", r"armour": "armour?",
    r"misc/runes": "rune", r"altars": "altar", r"doors": "door", r"trees": "tree",
    r"dngn/statues": "statue", r"mon/statues": "statue?", r"draco$": "draconian",
    r"dragons": "dragon?", r"eyes": "eye", r"fungi_plants": "plant?",
    r"skeletons": "skeleton", r"zombies": "zombie", r"simulacra": "simulacrum",
    r"spectrals": "spectre", r"undead": "undead?", r"demons$": "demon?",
    r"demonspawn": "demonspawn", r"unique": "hero?", r"animals": "animal?",
}  # fmt: skip

# Nouns that a name may hold; the value is a broader everyday noun, or "" where there is none.
KINDS = {
    **dict.fromkeys(
        "sword axe bow crossbow dagger knife spear trident mace flail hammer club whip scythe "
        "staff wand rod sling polearm potion ring amulet scroll book gem shield helmet hat cloak "
        "robe boots gloves armour dragonscale dragon spider skeleton snake ghost bat wolf dog bear "
        "turtle scorpion demon giant eye rat frog worm ant bee butterfly elephant sheep hog yak "
        "fish crocodile lizard crab beetle bird lion tree mushroom plant bush statue altar door "
        "key chest fountain lamp orb crystal stone rune apple banana pear orange lemon "
        "strawberry grape pizza bread meat cheese honeycomb bone fruit jelly troll orc goblin "
        "kobold elf dwarf gnome halfling human ogre cyclops minotaur centaur naga mermaid vampire "
        "mummy lich zombie skull golem gargoyle elemental hydra wyvern griffon sphinx harpy "
        "angel imp devil wizard knight monk priest slug snail leech moth mosquito shark eel "
        "jellyfish octopus column idol horn lantern mirror box net bottle fan disc obelisk "
        "tornado face mask spriggan draconian necromancer merfolk siren salamander satyr tengu "
        "gnoll shapeshifter titan drake kraken faun dryad witch beast wasp cat hippogriff "
        "manticore yaktaur formicid warrior mage slave fiend hellion cherub wraith phantom shadow "
        "clown portal meteor sarcophagus brain horror guard".split(), "",
    ),
    "rapier": "sword", "falchion": "sword", "scimitar": "sword", "sabre": "sword",
    "katana": "sword", "tsurugi": "sword", "cutlass": "sword", "claymore": "sword",
    "blade": "sword", "quickblade": "sword", "majin": "sword",
    "glaive": "polearm", "halberd": "polearm", "bardiche": "polearm", "trishula": "trident",
    "lajatang": "polearm", "ankus": "hammer", "morningstar": "mace", "eveningstar": "mace",
    "sceptre": "staff", "scourge": "whip", "tomahawk": "axe", "blowgun": "weapon",
    "shillelagh": "club", "buckler": "shield", "cap": "hat", "mangrove": "tree", "treant": "tree",
    "fungus": "mushroom", "deathcap": "mushroom", "viper": "snake", "adder": "snake",
    "mamba": "snake", "anaconda": "snake", "moccasin": "snake", "python": "snake",
    "serpent": "snake", "hound": "dog", "jackal": "dog", "warg": "wolf", "alligator": "crocodile",
    "newt": "lizard", "gecko": "lizard", "iguana": "lizard", "komodo": "lizard",
    "gila": "lizard", "basilisk": "lizard", "toad": "frog", "redback": "spider",
    "tarantella": "spider", "cockroach": "beetle", "bumblebee": "bee", "lindwurm": "dragon",
    "apricot": "fruit", "lychee": "fruit", "rambutan": "fruit", "choko": "fruit",
    "sultana": "fruit", "jerky": "meat", "sausage": "meat", "mitre": "hat", "crown": "hat",
    "swine": "hog", "boulder": "stone", "rock": "stone", "eyeball": "eye", "plate": "armour",
    "mail": "armour", "ringmail": "armour", "gauntlets": "gloves", "raven": "bird",
    "phoenix": "bird", "daeva": "angel", "paladin": "knight", "wight": "undead",
    "revenant": "undead", "ghoul": "undead", "balrug": "demon", "reaper": "demon",
    "blowfly": "bee", "firefly": "bee", "rat skin": "cloak", "goldfish": "fish",
}  # fmt: skip

# Words that may be kept from the names of unique characters and artefacts, which are proper names.
NAMES = {
    "orc", "sword", "axe", "bow", "spear", "knife", "cutlass", "katana", "shillelagh", "hydra",
    "jelly", "serpent", "crystal", "cloak", "mask", "whip", "scourge", "blowgun", "frog",
    "giant", "iron", "brooch", "storm",
}  # fmt: skip

REWRITES = {
    "two handed sword": "great sword", "greatsword": "great sword", "broadsword": "broad sword",
    "longbow": "long bow", "shortbow": "short bow",
    "greatsling": "great sling", "quarterstaff": "quarter staff", "ring mail": "ringmail",
    "chain mail": "chainmail armour", "scale mail": "scalemail armour",
    "banded mail": "banded armour", "splint mail": "splint armour",
    "plate mail": "plate armour",
    "dragon scale mail": "dragonscale armour", "dragon scales": "dragonscale",
    "dragon hide": "dragonscale", "dragon armour": "dragonscale armour",
    "platemail": "plate armour",
    "scalemail": "scalemail armour", "armor": "armour", "gloorx vloq": "", "lom lobon": "",
    "glove": "gloves", "gauntlet": "gauntlets", "golden": "gold", "gray": "grey", "books": "book",
    "giant bat": "bat", "giant ant": "ant", "giant beetle": "beetle", "giant newt": "newt",
    "giant scorpion": "scorpion", "giant slug": "slug", "giant snail": "snail",
    "giant toad": "toad", "giant frog": "frog", "giant leech": "leech", "giant mite": "mite",
    "giant blowfly": "blowfly", "giant cockroach": "cockroach", "giant gecko": "gecko",
    "giant lizard": "lizard", "giant eyeball": "eye", "giant club": "club",
    "giant spiked club": "spiked club", "giant centipede": "centipede worm",
    "giant firefly": "firefly", "giant goldfish": "goldfish", "giant amoeba": "amoeba jelly",
    "giant spore": "spore mushroom", "giant orange brain": "orange brain",
    "gigabat": "bat", "megabat": "bat", "microbat": "bat",
    "killer bee larva": "larva worm",
    "klown": "clown",
    "merfolk plain": "merfolk", "octopode": "octopus", "wandering mushroom": "mushroom",
    "ball python": "python", "hellwing": "demon", "eye devastation": "eye", "helm": "helmet",
    "boots brown": "brown boots", "jackboots": "boots",
    "cornuthaum": "wizard hat",
    "metal blue": "blue metal", "magenta": "pink", "puce": "purple", "emerald": "green emerald",
    "ruby": "red ruby", "sapphire": "blue sapphire", "jade": "green jade", "coral": "pink coral",
    "humanoid": "human", "quadruped": "beast", "wolf spider": "hairy spider",
    "labrat": "rat", "piece of ambrosia": "ambrosia", "lump of royal jelly": "royal honey",
    "book of the dead": "dead book", "orb of fire": "fire orb", "moth of wrath": "wrath moth",
    "great orb of eyes": "eye", "shield of reflection": "mirror shield", "dragon mask": "mask",
    "moth of suppression": "moth", "eye of devastation": "eye", "eye of draining": "eye",
    "block of ice": "ice crystal", "pillar of salt": "salt column",
    "orb of electricity": "electric orb", "orb of ice": "ice orb",
    "crawling corpse": "corpse zombie",
    "orb of destruction": "energy orb", "ball lightning": "lightning orb",
    "death cob": "cob undead",
    "war dog": "dog", "bog body": "zombie", "jiangshi": "vampire",
    "elven arrow": "arrow", "vortex": "tornado", "twister": "tornado", "maelstrom": "tornado",
    "spatial tornado": "tornado", "deep elf": "elf", "deep dwarf": "dwarf", "deep troll": "troll",
}  # fmt: skip

DROPPED = {
    "new", "old", "small", "large", "spwpn", "urand", "unrand", "dngn", "misc", "the", "art",
    "ego", "big", "female", "male", "tile", "base", "mottle", "inert", "branch", "left", "right",
    "up", "down", "closed", "open", "melee", "with", "unique", "dd", "dk", "scion", "worn",
    "lshield", "def", "defshield", "mon", "and", "one", "two", "three", "stone1", "bk", "quad",
    "generic", "unknown", "altar2", "sif", "muna", "rune", "demonic", "item", "deformed",
    "norris", "louise", "donald",
}  # fmt: skip
