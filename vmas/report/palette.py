"""One colour and one marker per system, everywhere (Okabe and Ito's palette, safe for colour-blind readers)."""

SYSTEMS: dict[str, tuple[str, str]] = {
    "VMAs": ("#D55E00", "o"),
    "Real music": ("#000000", "s"),
    "Real music, through the codec": ("#0072B2", "D"),
    "Music of another video": ("#999999", "X"),
    "CMT": ("#E69F00", "^"),
    "Video2Music": ("#F0E442", "v"),
    "VidMusicGen": ("#56B4E9", "<"),
    "Vid2MLDM": ("#009E73", ">"),
    "V2Meow": ("#CC79A7", "P"),
}
# Rows of an ablation, never in one figure with the other systems; the last is VMAs itself.
STEPS: dict[str, tuple[str, str]] = {
    "Autoregressive baseline": ("#56B4E9", "o"),
    "+ contrastive": ("#E69F00", "o"),
    "+ beat weighting": SYSTEMS["VMAs"],
}
# Video encoders of Table 6; ours is VMAs itself.
ENCODERS: dict[str, tuple[str, str]] = {
    "CLIP-style": ("#E69F00", "^"),
    "Hiera-style": ("#009E73", "D"),
    "VMAs encoder": SYSTEMS["VMAs"],
}
# Training clips of section 6.2.
SETS: dict[str, tuple[str, str]] = {
    "Unfiltered": ("#999999", "X"),
    "Unfiltered, as few clips": ("#56B4E9", "s"),
    "Frame similarity < 0.7": SYSTEMS["VMAs"],
    "Moving by the truth": ("#009E73", "D"),
    "All filters": ("#CC79A7", "P"),
}
# Who tells genres apart; never in one figure with systems that make music.
LISTENERS: dict[str, tuple[str, str]] = {
    "Random forest": ("#000000", "s"),
    "Random forest, attributes of the picture": ("#009E73", "^"),
    "Strong tagger": ("#0072B2", "D"),
    "Committed tagger": ("#CC79A7", "o"),
}
# Generators that cannot fail at music and differ in what they are told.
PERFECT: dict[str, tuple[str, str]] = {
    "Perfect, told the genre": ("#009E73", "D"),
    "Perfect, sees the picture": ("#56B4E9", "o"),
    "Perfect, sees X_v": ("#E69F00", "^"),
    "Perfect, likeliest by X_v": ("#CC79A7", "v"),
    "Perfect, sees nothing": ("#999999", "X"),
}
# Whose X_v a probe reads, and the picture that all of them see.
PROBED: dict[str, tuple[str, str]] = {
    "Encoder, untrained": ("#999999", "X"),
    "Encoder, stage 1a": ("#E69F00", "^"),
    "Encoder, three times as long": SYSTEMS["VMAs"],
    "The picture itself": ("#56B4E9", "o"),
}
KNOWN = {**SYSTEMS, **STEPS, **ENCODERS, **SETS, **LISTENERS, **PERFECT, **PROBED}


def _family(system: str) -> str:
    """The entry that a system belongs to: its name without role, citation or what a variant changes."""
    name = system.split(" (")[0].split(" [")[0]
    found = [entry for entry in KNOWN if name == entry or name.startswith((f"{entry},", f"{entry} "))]
    return max(found, key=len) if found else name


def colour(system: str) -> str:
    """Hexadecimal colour of a system; a variant has its family's. Raises KeyError for one without a colour."""
    return KNOWN[_family(system)][0]


def marker(system: str) -> str:
    """Matplotlib marker of a system."""
    return KNOWN[_family(system)][1]
