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


def _name(system: str) -> str:
    """The system without its role or citation: `VMAs (ours)` is `VMAs`."""
    return system.split(" (")[0].split(" [")[0]


def colour(system: str) -> str:
    """Hexadecimal colour of a system. Raises KeyError for one without a colour."""
    return SYSTEMS[_name(system)][0]


def marker(system: str) -> str:
    """Matplotlib marker of a system."""
    return SYSTEMS[_name(system)][1]
