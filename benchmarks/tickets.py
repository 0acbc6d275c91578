"""Support tickets of an invented company, as many as asked for, from a seed: what
`benchmarks.prepare` prepares.

    python -m benchmarks.tickets ROWS FILE.csv

Of a hundred rows 15 repeat an earlier one, 5 of them to the letter; 20 hold personal data or a key,
none of it anybody's: domains, numbers and addresses that are set aside for examples or private use,
cards and accounts that only have valid checksums. Memory does not grow with the rows.
"""

from __future__ import annotations

import csv
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

SHARE_EXACT, SHARE_NEAR = 0.05, 0.10
SHARE_PERSONAL = 0.20
SHARE_EMPTY = 0.001  # a cell somebody left out; prepare rejects it and says so
REMEMBERED = 20_000  # earlier rows that may be repeated

THINGS = (
    "kettle",
    "office chair",
    "desk lamp",
    "espresso machine",
    "rain jacket",
    "garden hose",
    "bookshelf",
    "bread oven",
    "hiking boots",
    "bicycle pump",
    "water filter",
    "wall clock",
    "sofa bed",
    "power drill",
    "label printer",
    "tent",
    "mattress",
    "vacuum cleaner",
    "coffee grinder",
    "fan heater",
    "standing desk",
    "monitor arm",
    "suitcase",
    "carpet",
    "hand mixer",
    "air purifier",
    "pillow set",
    "tool box",
    "phone holder",
    "toaster",
    "picnic table",
    "door bell",
)
TRAITS = (
    "red",
    "dark green",
    "small",
    "large",
    "second",
    "new",
    "white",
    "cheapest",
    "foldable",
    "wooden",
    "grey",
    "blue",
    "oldest",
    "heavy",
    "spare",
    "extra long",
    "reduced",
    "black",
    "returned",
    "replaced",
)
PLACES = (
    "Lyon",
    "Graz",
    "Porto",
    "Ghent",
    "Turku",
    "Leeds",
    "Malmö",
    "Bremen",
    "Cork",
    "Bilbao",
    "Brno",
    "Utrecht",
    "Trieste",
    "Gdansk",
    "Aarhus",
    "Basel",
    "Split",
    "Tartu",
    "Nantes",
    "Bergen",
    "Varna",
    "Kraków",
    "Patras",
    "Linz",
    "Dijon",
)
TIMES = (
    "on Monday",
    "last Tuesday",
    "since Wednesday",
    "a week ago",
    "in early March",
    "over the weekend",
    "this morning",
    "two days ago",
    "at the end of May",
    "yesterday evening",
    "for ten days now",
    "just before noon",
    "in the summer sale",
    "after the holidays",
    "on the first of June",
    "late on Friday",
    "three weeks ago",
    "during the night",
)
PEOPLE = (
    "my colleague",
    "the courier",
    "your agent on the phone",
    "our accountant",
    "a neighbour",
    "my sister",
    "the caretaker",
    "your shop in {place}",
    "the man at the counter",
    "our warehouse",
    "my manager",
    "somebody in your chat",
    "the fitter",
)
LABELS = {
    "late delivery": (
        "the {trait} {thing} [was promised|should have come|was announced] for {place} {time} and "
        "[is still missing|has not come|never turned up]",
        "{person} [says|claims|tells me] that nothing for {place} left your "
        "[depot|warehouse|store] {time}, so where is my {thing}",
        "[tracking|your page|the link] has shown the {trait} {thing} as [on its way|in "
        "transit|almost there] {time}",
        "how much longer [must|do] we wait for [a|the] {thing} that [others|people in {place}] get "
        "in [two|three] days",
    ),
    "damaged item": (
        "the {thing} [came|arrived|was handed over] with a [dent|scratch|hole], and the {trait} "
        "part is [cracked right through|bent|loose]",
        "{person} [opened|unpacked|looked into] the [parcel|box|crate] {time} and found the "
        "{trait} {thing} in pieces",
        "one [leg|handle|side] of the {trait} {thing} [broke off|came apart|snapped] when we [set "
        "it up|lifted it|used it] {time}",
        "[water|oil|glue] has run [into|over] the {thing} on its way to {place}, it [smells|is "
        "stained|no longer closes]",
    ),
    "wrong item": (
        "I [ordered|asked for|paid for] the {trait} {thing} and you sent me a {thing2}",
        "[instead of|in place of] a {thing} there was a {trait} {thing2} in the box that {person} "
        "[took in|signed for|collected]",
        "the {thing} is not the {trait} one that your [page|catalogue|letter] shows, [please look "
        "into it|who mixed that up]",
    ),
    "refund status": (
        "the {trait} {thing} [went back|was returned|is at your depot] {time}, and the money has "
        "not [arrived|come|been booked]",
        "{person} [promised|offered|granted] me {amount} for the {thing}, [where does that "
        "stand|when does it come|and then nothing happened]",
        "how long does it [take|last] until {amount} for a returned {thing} is [on my account|paid "
        "back|visible at my bank]",
    ),
    "return request": (
        "I [want|would like|need] to send the {trait} {thing} back, it does not [fit into our "
        "flat|match the {thing2}|suit us] in {place}",
        "please [send|mail|give me] a return label for the {thing} that {person} "
        "[received|unpacked|bought] {time}",
        "[can|may|could] I bring the {trait} {thing} to your shop in {place} in place of "
        "[posting|mailing] it",
    ),
    "charged twice": (
        "{amount} for the {thing} [left my account|was taken|was booked] two times {time}",
        "our bank [shows|lists|reports] the payment for the {trait} {thing} twice, {person} "
        "[noticed|saw|found] it {time}",
        "you have [booked|charged|collected] {amount} again although the {thing} is [long "
        "paid|settled|already mine]",
    ),
    "invoice copy": (
        "{person} [needs|wants|asks for] the invoice of the {trait} {thing} once more, with our "
        "[VAT number|full name|order code]",
        "the invoice over {amount} [names|shows|goes to] the branch in {place} and should [name|be "
        "for] the one in {place2}",
        "I cannot find the [bill|invoice|receipt] for the {thing} from {time} [anywhere|in my "
        "mails|in my account]",
    ),
    "change address": (
        "we have [moved|gone] from {place} to {place2}, please [send|forward|redirect] the {thing} "
        "there",
        "the {trait} {thing} must go to {person} in {place}, [not|and not] to my "
        "[old|former|private] address",
        "my [profile|account|file] still has the [street|house number|postcode] in {place} that I "
        "[corrected|changed|reported] {time}",
    ),
    "cancel order": (
        "please [stop|cancel|hold] the order of the {trait} {thing}, {person} has "
        "[bought|found|borrowed] one {time}",
        "I [clicked|ordered|tapped] by mistake {time} and do not [want|need] the {thing} at all",
        "[cancel|call off|withdraw] the {trait} {thing} for {place} before it is "
        "[sent|packed|paid]",
    ),
    "login problem": (
        "I cannot [sign in|log in|get in] {time}, the page only says that [something went wrong|I "
        "should wait|the session is over]",
        "the [code|mail|link] that should let me in never reaches my [phone|tablet|inbox] here in "
        "{place}",
        "{person} [locked|blocked|closed] our account {time} after [three|five|a few] wrong tries",
    ),
    "delete account": (
        "[remove|erase|delete] my account and everything that you [keep|know|store] about the "
        "{thing} I bought {time}",
        "{person} has left our [firm|office|club] in {place}, so please [erase|close|remove] that "
        "profile",
        "I no longer [shop|deal|stay] with you, [delete all my data|forget me|close everything in "
        "my name]",
    ),
    "discount code": (
        "the code from your [letter|magazine|mail] takes [nothing|too little] off the {trait} "
        "{thing}",
        "{person} got a voucher over {amount} {time} and the [basket|page|till] "
        "[refuses|ignores|loses] it",
        "is there still a [reduction|rebate|bargain] on the {thing} for "
        "[customers|members|teachers] in {place}",
    ),
    "stock question": (
        "when will the {trait} {thing} be [back|there|available again] in {place}",
        "your page says the {thing} is [sold out|gone|not to be had] {time}, but {person} "
        "[saw|found|counted] several",
        "do you [keep|have|show] the {trait} {thing} in any shop [near|around|north of] {place}",
    ),
    "size advice": (
        "does the {thing} in {trait} [suit|fit|fill] a room of [twelve|nine|thirty] square metres",
        "{person} is rather [tall|short|heavy], is the {trait} {thing} [high|strong|wide] enough",
        "which {thing} [fits|goes|looks right] where the {thing2} [stood|was|hung]",
    ),
    "warranty claim": (
        "the {thing} [stopped working|gave up|went dark] {time}, and it is only [a year|eight "
        "months|weeks] old",
        "how do I [claim|use|prove] the guarantee for a {trait} {thing} that was "
        "[bought|delivered] in {place}",
        "{person} [repaired|mended|exchanged] the {thing} once, and now the same "
        "[part|motor|hinge] has failed {time}",
    ),
    "spare part": (
        "I need the {trait} [lid|filter|wheel|handle] of the {thing}, can you [order|send|post] it "
        "to {place}",
        "where do I get a [cable|key|cover|blade] for a {thing} from {time}",
        "{person} lost [two|four|all] [screws|feet|clips] of the {trait} {thing}",
    ),
    "setup help": (
        "the [manual|leaflet|film] of the {thing} does not [say|show|explain] where the {trait} "
        "part goes",
        "we have tried to [connect|start|pair] the {thing} {time} and it only [blinks|beeps|hums]",
        "{person} has put the {trait} {thing} together and it [wobbles|leans|creaks]",
    ),
    "praise": (
        "the {trait} {thing} is [better|quieter|lighter] than I [hoped|thought|feared], thank "
        "{person} for me",
        "your shop in {place} [solved|settled|sorted] everything within [minutes|an hour] {time}",
        "I have [told everyone|written a review|sent pictures] about the {thing}, well done",
    ),
    "complaint about staff": (
        "{person} [hung up on|laughed at|ignored] me {time} when I [asked|complained|called] about "
        "the {thing}",
        "at the [counter|till|entrance] in {place} nobody [wanted|cared|had time] to look at my "
        "{trait} {thing}",
        "I was told [three|two|four] different things about the {thing}, and none [was "
        "true|helped|made sense]",
    ),
    "business order": (
        "we need [forty|sixty|ninety] pieces of the {trait} {thing} for our "
        "[offices|shops|schools] in {place} and {place2}",
        "can {person} [get|have|see] an offer over {amount} for a dozen of the {thing}",
        "is there a better price for [firms|schools|clinics] that [take|order|need] the {thing} "
        "every [month|spring|quarter]",
    ),
}
DETAILS = (
    "The [box|wrapping|parcel] was {trait} and {person} has [kept|photographed|thrown away] it.",
    "I [wrote|called|asked] {time} and nobody has [answered|reacted|looked into it].",
    "It [was meant as|should be|is] a [present|surprise|gift] for [somebody|a friend|my aunt] in "
    "{place}.",
    "{person} can [confirm|prove|explain] all of this.",
    "There are [photographs|notes|two witnesses] if you [want to see them|need them].",
    "The [total|price|sum] was {amount}, paid by [bank transfer|card|invoice].",
    "We also [ordered|bought|tried] a {trait} {thing2}, and that [went well|was quick|took a "
    "month].",
    "Your [page|app|chat] gave me [an error|an empty window|a strange number] {time}.",
    "I am [at home|at work|in reach] in {place} only until [the evening|noon|four].",
    "The [number|code|reference] of the order is {number}.",
    "[Last year|Two years ago|In spring] the same happened with a {thing2}.",
    "Please do not [call|ring], my phone is [switched off|broken|with {person}] {time}.",
    "{person} [suggested|advised|insisted] that I [write|turn] to this address.",
    "I would be [content|happy|satisfied] with {amount} or a {trait} {thing2}.",
    "The [line|number|desk] in {place} was [busy|dead|closed] {time}.",
    "It [stands|lies|waits] unused next to the {thing2}.",
    "My [contract|receipt|mail from you] says that this takes [two|five|ten] working days.",
    "Our [office|shop|school] in {place} closes at [five|six|seven].",
    "I have [read|studied|searched] the [conditions|small print|help pages] and found nothing on "
    "it.",
    "This is the [second|third|fourth] time that I [ask|write|complain].",
    "The {thing2} from the same order is [fine|great|what we wanted].",
    "If it helps, the [parcel|pallet|bag] weighed [nine|six|twenty] kilos.",
    "{person} was told [something else|the opposite|nothing] {time}.",
    "Without it we cannot [open|run|finish] the [shop|kitchen|hall] in {place}.",
    "[A neighbour|My son|The landlord] has the same {trait} {thing2} and [no trouble|likes "
    "it|laughs at us].",
    "I [prefer|would rather have] an answer in [writing|French|plain words].",
    "We are [customers|members] since [2009|2015|2021] and [never|hardly ever] had to write.",
    "[Somewhere|I think] between {place} and {place2} it must have [got lost|been dropped|been "
    "opened].",
)
OPENINGS = (
    "Hello,",
    "Good morning,",
    "Dear team,",
    "Hi there,",
    "To whom it may concern,",
    "Good day,",
    "Hello again,",
    "",
    "",
    "",
    "Please help:",
    "Quick question:",
    "A customer writes:",
    "Dear all,",
    "Hi,",
    "Following up:",
)
CLOSINGS = (
    "Thank you.",
    "Kind regards",
    "Please answer soon.",
    "Thanks in advance",
    "Best wishes from {place}",
    "",
    "",
    "",
    "",
    "I look forward to hearing from you.",
    "What can be done?",
    "Is that possible?",
    "Yours, a loyal customer",
    "Cheers",
)
WORDS = ("really", "again", "now", "please", "still", "actually", "maybe", "just", "also", "simply")


def rows(count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Pairs (text, label)."""
    choose = random.Random(seed)
    earlier: list[tuple[str, str]] = []
    names = list(LABELS)
    for k in range(count):
        kind = choose.random()
        if kind < SHARE_EMPTY:
            yield "", choose.choice(names)
            continue
        if earlier and kind < SHARE_EMPTY + SHARE_EXACT:
            row = choose.choice(earlier)
        elif earlier and kind < SHARE_EMPTY + SHARE_EXACT + SHARE_NEAR:
            text, label = choose.choice(earlier)
            row = changed(choose, text), label
        else:
            label = choose.choice(names)
            row = ticket(choose, label), label
        if len(earlier) < REMEMBERED:
            earlier.append(row)
        elif choose.random() < REMEMBERED / (k + 1):
            earlier[choose.randrange(REMEMBERED)] = row
        yield row


def ticket(choose: random.Random, label: str) -> str:
    """A new text of 80 to 300 characters."""
    request = choose.choice(LABELS[label])
    parts = [choose.choice(OPENINGS), request + "."]
    parts += choose.sample(DETAILS, choose.choice((1, 1, 2, 2, 3)))
    if choose.random() < SHARE_PERSONAL:
        parts.append(choose.choice(PERSONAL)(choose))
    text = " ".join(_filled(choose, part) for part in [*parts, choose.choice(CLOSINGS)] if part)
    while len(text) < 80:
        text += " " + _filled(choose, choose.choice(DETAILS))
    return text if len(text) <= 300 else text[:300].rsplit(" ", 1)[0]


def changed(choose: random.Random, text: str) -> str:
    """The same text as somebody else would send it again: a word
    more, less or mistyped, or another case.
    """
    words = text.split()
    at = choose.randrange(len(words))
    kind = choose.randrange(4)
    if kind == 0:
        words.insert(at, choose.choice(WORDS))
    elif kind == 1 and len(words) > 10:
        del words[at]
    elif kind == 2 and len(words[at]) > 3:
        k = choose.randrange(len(words[at]) - 1)
        words[at] = words[at][:k] + words[at][k + 1] + words[at][k] + words[at][k + 2 :]
    else:
        return text.lower().rstrip(".") + " !"
    return " ".join(words)


def _filled(choose: random.Random, text: str) -> str:
    """A sentence with one of every [a|b] taken, and every {slot} filled by a draw of its own."""
    while "[" in text:
        head, _, rest = text.partition("[")
        choice, _, tail = rest.partition("]")
        text = head + choose.choice(choice.split("|")) + tail
    while "{" in text:
        head, _, rest = text.partition("{")
        slot, _, tail = rest.partition("}")
        text = head + SLOTS[slot](choose) + tail
    return text[0].upper() + text[1:]


def _digits(choose: random.Random, count: int) -> str:
    return "".join(choose.choices("0123456789", k=count))


def _card(choose: random.Random) -> str:
    """A number with a valid Luhn digit, of a range that no bank issues."""
    body = "400000" + _digits(choose, 9)
    total = sum(
        sum(divmod(int(d) * (2 if k % 2 == 0 else 1), 10)) for k, d in enumerate(reversed(body))
    )
    whole = body + str(-total % 10)
    return " ".join(whole[k : k + 4] for k in range(0, 16, 4))


def _iban(choose: random.Random) -> str:
    """An account number with valid check digits, at a bank code of nines."""
    account = "99999999" + _digits(choose, 10)
    check = 98 - int(account + "131400") % 97  # D is 13, E is 14
    return f"DE{check:02d}{account}"


SLOTS: dict[str, Callable[[random.Random], str]] = {
    "thing": lambda choose: choose.choice(THINGS),
    "thing2": lambda choose: choose.choice(THINGS),
    "trait": lambda choose: choose.choice(TRAITS),
    "place": lambda choose: choose.choice(PLACES),
    "place2": lambda choose: choose.choice(PLACES),
    "time": lambda choose: choose.choice(TIMES),
    "person": lambda choose: choose.choice(PEOPLE),
    "amount": lambda choose: f"{choose.randrange(5, 900)}.{choose.randrange(100):02d} euros",
    "number": lambda choose: f"{choose.choice('ABCDEFGH')}-{_digits(choose, 6)}",
}
PERSONAL: tuple[Callable[[random.Random], str], ...] = (
    lambda choose: (
        f"Write to customer{_digits(choose, 4)}@example.{choose.choice(('org', 'com', 'net'))}."
    ),
    lambda choose: f"My mail is shop.{_digits(choose, 3)}@mail.example.com if you need it.",
    lambda choose: f"You can reach me under +1 202 555 01{_digits(choose, 2)}.",
    lambda choose: f"My number is (415) 555-01{_digits(choose, 2)}.",
    lambda choose: f"I paid with card {_card(choose)}.",
    lambda choose: f"Please refund to {_iban(choose)}.",
    lambda choose: (
        "The page was opened from "
        f"10.{choose.randrange(256)}.{choose.randrange(256)}.{choose.randrange(1, 255)}."
    ),
    lambda choose: (
        "Our shop's key is "
        f"{'sk' + '_test_'}{''.join(choose.choices('abcdefghijkmnpqrstuvwxyz23456789', k=24))}."
    ),
)


def write(path: Path, count: int, seed: int = 0) -> Path:
    """Write rows as CSV with the columns text and label."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("text", "label"))
        writer.writerows(rows(count, seed))
    return path


if __name__ == "__main__":
    write(Path(sys.argv[2]), int(sys.argv[1]))
