"""Names, goods and other single words of the example data; all invented for it."""

DEVICES = (
    "coffee grinder", "milk frother", "kettle", "herb planter", "air sensor", "kitchen scale", "toaster",
    "plant lamp", "water filter jug", "hand blender", "bread maker", "dehumidifier", "espresso maker",
    "watering timer", "smart plug", "soil probe", "rice cooker", "vacuum sealer", "roasting thermometer",
    "yoghurt maker", "fridge sensor", "pour-over kettle", "compost bin", "sous-vide stick", "egg cooker",
)  # fmt: skip
GOODS = (
    "mug", "seed kit", "apron", "glass jar", "tea tin", "bean sampler", "spice rack", "cast iron pan",
    "linen towel", "chopping board", "cold brew bottle", "teapot", "carafe", "lunch box", "recipe book",
    "terracotta pot", "salad bowl", "filter pack", "gift basket", "oil bottle",
)  # fmt: skip
PLANS = (
    "bean box", "tea box", "filter plan", "seed club", "spice box", "refill plan", "pantry box",
    "monthly box", "family plan", "coffee subscription", "herb box", "premium plan",
)  # fmt: skip
CODES = (
    "SPRING15", "WELCOME10", "HERB20", "BREW5", "FRIENDS", "MAY25", "GARDEN12", "TEATIME", "THANKYOU",
    "BEANS30", "FREESHIP", "SUMMER8",
)  # fmt: skip
CARDS = ("4111 1111 1111 1111", "4111111111111111", "5555 5555 5555 4444", "4242 4242 4242 4242")
FIRST_NAMES = (
    "Anouk", "Bram", "Celia", "Dorian", "Edda", "Farid", "Greta", "Hamish", "Ines", "Jonas", "Keiko", "Lars",
    "Maribel", "Nadia", "Otto", "Priya", "Quentin", "Rosa", "Stellan", "Tamsin", "Umar", "Vera", "Wilma",
    "Yusuf", "Zofia", "Ada", "Cormac", "Ewa", "Leif", "Paolo",
)  # fmt: skip
SURNAMES = (
    "Ashgrove", "Bellweather", "Castellan", "Dunmore", "Eastlake", "Fennimore", "Garrow", "Holtby",
    "Ironwood", "Jessamy", "Kettering", "Lindqvist", "Marchbank", "Netherby", "Okonjo", "Pellerin",
    "Quarrie", "Ravensworth", "Sandoval", "Thistlewood", "Underhay", "Vantongeren", "Wakelin", "Yarrow",
)  # fmt: skip
STREETS = (
    "Larkspur Lane", "Mill Row", "Old Quay Street", "Birch Terrace", "Harbour Road", "Chapel Hill",
    "Saffron Court", "Station Road", "Juniper Close", "Orchard Way", "Foundry Street", "Canal Walk",
)  # fmt: skip
LISTS: dict[str, tuple[str, ...]] = {
    "first": FIRST_NAMES,
    "surname": SURNAMES,
    "city": (
        "Harrowmouth", "Ostley", "Brackenford", "Veldt", "Mardale", "Kestrel Bay",
        "Sint Aldert", "Lindau West",
        "Pernsea", "Old Wexcombe",
    ),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "month": (
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
        "November", "December",
    ),
    "ding": (
        "die Kaffeemühle", "das Waffeleisen", "die Küchenwaage", "die Pflanzenlampe", "das Thermometer",
        "die Teekanne", "die Pfanne", "das Schneidebrett", "die Kaffeemaschine", "das Brotbackgerät",
        "die Eismaschine", "die Saftpresse",
    ),
    "tag": ("Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag"),
    "vor": ("vor zwei Wochen", "vor zehn Tagen", "vor einem Monat", "letzte Woche", "Anfang des Monats"),
    "ago": (
        "two weeks ago", "ten days ago", "three weeks ago", "a month ago", "last week", "a fortnight ago",
        "eleven days ago", "5 weeks ago", "at the start of the month", "ages ago", "16 days ago",
    ),
    "span": (
        "two weeks", "nine days", "a month", "three weeks", "two months", "four months", "half a year",
        "12 days", "six weeks", "almost a month",
    ),
}  # fmt: skip

# Rows that a careful loader must refuse: no text, or no category.
BROKEN = (
    ("", "late_delivery"),
    ("", "refund_request"),
    ("   ", "billing_error"),
    ("", "setup_help"),
    ("", ""),
    ("  ", "promo_code"),
    ("Hello, I wrote yesterday about my parcel, did you see it?", ""),
    ("please call me back, it's about the thing from last week", ""),
    ("[attachment without text]", ""),
    ("The same problem as before, see my last mail.", " "),
    ("asdf test test", ""),
    ("Can you forward this to the right team?", ""),
)
