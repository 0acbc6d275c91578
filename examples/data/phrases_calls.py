"""The tools and the phrases of the help desk messages; company, people, rooms and numbers are
invented for them.

``{a|b}`` are alternatives, ``[name]`` is a value: one of the call's where the phrase asks for it,
else a passing one.
"""

DATE = {"type": "string", "format": "date"}
TOOLS = (
    {
        "name": "reset_password",
        "description": "Reset the password of a user's account.",
        "properties": {
            "account": {"enum": ["crm", "mail", "payroll", "vpn", "wiki"]},
            "user": {
                "type": "string",
                "pattern": "^[a-z]{3,12}[0-9]{2}$",
                "description": "such as hholt07",
            },
        },
    },
    {
        "name": "report_fault",
        "description": "Report a device that does not work.",
        "properties": {
            "device": {"enum": ["laptop", "monitor", "phone", "printer", "projector"]},
            "asset": {
                "type": "string",
                "pattern": "^[A-Z]{2}-[0-9]{4}$",
                "description": "the number on its sticker",
            },
            "urgent": {
                "type": "boolean",
                "description": "true where the message says that it cannot wait",
            },
        },
    },
    {
        "name": "book_room",
        "description": "Book a meeting room.",
        "properties": {
            "room": {"enum": ["Birch", "Cedar", "Maple", "Rowan"]},
            "date": DATE,
            "start": {
                "type": "string",
                "pattern": "^[0-2][0-9]:[0-5][0-9]$",
                "description": "such as 09:30",
            },
            "people": {"type": "integer", "minimum": 2, "maximum": 20},
        },
    },
    {
        "name": "order_equipment",
        "description": "Order equipment for a desk.",
        "properties": {
            "item": {"enum": ["chair", "docking_station", "headset", "keyboard", "monitor"]},
            "quantity": {"type": "integer", "minimum": 1, "maximum": 12},
            "cost_center": {"type": "string", "pattern": "^[0-9]{5}$"},
        },
    },
    {
        "name": "claim_expense",
        "description": "Hand in a bill that was paid privately.",
        "properties": {
            "kind": {"enum": ["hotel", "meal", "training", "travel"]},
            "amount": {"type": "number", "minimum": 0},
            "currency": {"enum": ["EUR", "GBP", "USD"]},
            "date": DATE,
        },
    },
    {
        "name": "report_absence",
        "description": "Enter days on which somebody is absent.",
        "properties": {
            "kind": {"enum": ["parental", "sick", "vacation"]},
            "first_day": DATE,
            "last_day": DATE,
        },
    },
)
ROOMS = ("Birch", "Cedar", "Maple", "Rowan")
# the words for each value of an enumeration
SAID = {
    "en": {
        "account": {
            "crm": ("the CRM", "the customer database"),
            "mail": ("mail", "Outlook", "my mailbox"),
            "payroll": ("payroll", "the payslip portal"),
            "vpn": ("the VPN", "remote access"),
            "wiki": ("the wiki", "the handbook wiki"),
        },
        "device": {
            "laptop": ("laptop", "notebook"),
            "monitor": ("monitor", "screen"),
            "phone": ("phone", "mobile"),
            "printer": ("printer", "copier"),
            "projector": ("projector", "beamer"),
        },
        "item": {
            "chair": ("chair", "desk chair"),
            "docking_station": ("docking station", "dock"),
            "headset": ("headset", "headset"),
            "keyboard": ("keyboard", "keyboard"),
            "monitor": ("monitor", "screen"),
        },
        "bill": {
            "hotel": ("the hotel", "two nights at the inn", "the room in {Delft|Leeds|Basel}"),
            "meal": ("the dinner with a customer", "lunch with the auditors", "the team breakfast"),
            "training": ("the welding course", "the exam fee", "the first aid course"),
            "travel": ("the train to {Delft|Leeds|Basel}", "a taxi", "the ferry", "parking"),
        },
    },
    "de": {
        "account": {
            "crm": ("das CRM", "die Kundendatenbank"),
            "mail": ("Mail", "Outlook", "mein Postfach"),
            "payroll": ("das Gehaltsportal", "die Lohnabrechnung"),
            "vpn": ("das VPN", "den Fernzugang"),
            "wiki": ("das Wiki", "das Handbuch-Wiki"),
        },
        "device": {
            "laptop": ("Laptop", "Notebook"),
            "monitor": ("Monitor", "Bildschirm"),
            "phone": ("Telefon", "Handy"),
            "printer": ("Drucker", "Kopierer"),
            "projector": ("Beamer", "Projektor"),
        },
        "item": {
            "chair": ("Stuhl", "Schreibtischstuhl"),
            "docking_station": ("Dockingstation", "Dock"),
            "headset": ("Headset", "Headset"),
            "keyboard": ("Tastatur", "Tastatur"),
            "monitor": ("Monitor", "Bildschirm"),
        },
        "bill": {
            "hotel": ("das Hotel", "zwei Nächte im Gasthof", "das Zimmer in {Delft|Leeds|Basel}"),
            "meal": (
                "das Essen mit einem Kunden",
                "das Mittagessen mit den Prüfern",
                "das Teamfrühstück",
            ),
            "training": ("den Schweißkurs", "die Prüfungsgebühr", "den Erste-Hilfe-Kurs"),
            "travel": ("den Zug nach {Delft|Leeds|Basel}", "ein Taxi", "die Fähre", "das Parken"),
        },
    },
}
NUMBERS = {
    "en": (
        "",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ),
    "de": (
        "",
        "ein",
        "zwei",
        "drei",
        "vier",
        "fünf",
        "sechs",
        "sieben",
        "acht",
        "neun",
        "zehn",
        "elf",
        "zwölf",
    ),
}
MONTHS = {
    "en": (
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ),
    "de": (
        "Januar",
        "Februar",
        "März",
        "April",
        "Mai",
        "Juni",
        "Juli",
        "August",
        "September",
        "Oktober",
        "November",
        "Dezember",
    ),
}
WISHES = {
    "en": {
        "reset_password": (
            "{please|could you} {reset|renew} the password of [user] for [account]",
            "[user] {needs|wants} a new password for [account]",
            "I {forgot|mistyped} my password for [account] {|again}, {the user is|I am} [user], a "
            "fresh one please",
            "for [account] the user [user] {is locked|is blocked} after {three|five} wrong "
            "passwords: set a new one",
            "{can somebody|would you} set [user] a new password for [account]",
            "what {helps|I need} is another password for [account], user [user]",
            "the password of [user] {has run out|expired}; it is [account] that wants a new one, "
            "so please reset it",
        ),
        "report_fault": (
            "the [device] [asset] {does not start|stays dark|has stopped working}[urgent]",
            "please have a look at [device] [asset], it {flickers|makes a grinding noise|switches "
            "itself off}[urgent]",
            "[asset], {my|our} [device], is {broken|dead|out of order}[urgent]",
            "I want to report a {broken|faulty} [device], the sticker says [asset][urgent]",
            "{since lunch|for two days} [asset] {shows only stripes|does not react}, it is {a|our} "
            "[device][urgent]",
            "somebody should {mend|repair} the [device] with the number [asset][urgent]",
        ),
        "book_room": (
            "{please book|book|we need} [room] {on|for} [date] at [start] for [people]",
            "{could we have|can I get} [room] [date] from [start], there are [people] of us",
            "for [people] on [date] we {need|would like} [room], starting at [start]",
            "{reserve|put us into} [room] please: [date], [start], [people]",
            "[people] {meet|come together} on [date] at [start], and [room] would {suit|fit} us, "
            "so book it",
            "a room for [people] {is needed|is wanted}, {best|preferably} [room], on [date] from "
            "[start]",
        ),
        "order_equipment": (
            "{please order|order|we need} [items], cost centre [cost_center]",
            "{could you get|can you order} us [items]? {Charge|Book it on} [cost_center]",
            "[items] for {the new desk|our intern|the lab}, please, on cost centre [cost_center]",
            "{I would like|I want} to order [items]; [cost_center] pays",
            "cost centre [cost_center] {takes|wants} [items]",
            "what we {lack|miss} is [items], so order {that|it} on [cost_center]",
        ),
        "claim_expense": (
            "I paid [amount] for [bill] on [date], {please refund it|here is the bill}",
            "{please take|enter} [amount] for [bill], it was on [date]",
            "[bill] on [date] {cost|came to} [amount], which I {paid|laid out} myself and want "
            "back",
            "{hand in|I hand in} a bill of [date] over [amount] for [bill]",
            "for [bill] I laid out [amount] on [date]; {please claim it|put it through}",
            "my own card {paid|was charged} [amount] on [date] for [bill], so I claim it",
        ),
        "report_absence": (
            "{I am|I'll be} [kind] [span], please enter it",
            "{please enter|note} that I am [kind] [span]",
            "[span] I am [kind], so {mark me absent|enter that}",
            "{my doctor and I agree: |}I {stay away|am away} [span], namely [kind]",
            "enter me as [kind] [span]",
        ),
    },
    "de": {
        "reset_password": (
            "bitte {das Passwort von|die Anmeldung für} [user] für [account] {zurücksetzen|neu "
            "setzen}",
            "[user] {braucht|hätte gern} ein neues Passwort für [account]",
            "für [account] ist [user] nach {drei|fünf} Fehlversuchen gesperrt, bitte ein neues "
            "Passwort",
            "ich habe mein Passwort für [account] vergessen, Benutzer [user], bitte "
            "{neu|zurücksetzen}",
        ),
        "report_fault": (
            "[device] [asset] {geht nicht an|bleibt dunkel|ist kaputt}[urgent]",
            "bitte seht nach [device] [asset], {er|das Ding} {flackert|schaltet sich "
            "ab|knirscht}[urgent]",
            "ich melde eine Störung: [device] mit der Nummer [asset][urgent]",
            "[asset], {unser|mein} [device], {tut nichts mehr|reagiert nicht}[urgent]",
        ),
        "book_room": (
            "bitte [room] am [date] um [start] für [people] buchen",
            "wir brauchen [room] am [date] ab [start], wir sind [people]",
            "für [people] am [date] um [start] bitte [room] reservieren",
            "[people] treffen sich am [date] um [start], bucht uns bitte [room]",
        ),
        "order_equipment": (
            "bitte [items] bestellen, Kostenstelle [cost_center]",
            "wir brauchen [items], es zahlt [cost_center]",
            "auf Kostenstelle [cost_center] bitte [items] {besorgen|bestellen}",
            "{ich hätte gern|uns fehlen} [items], bitte bestellt sie auf [cost_center]",
        ),
        "claim_expense": (
            "ich habe am [date] [amount] für [bill] bezahlt, bitte erstatten",
            "bitte [amount] für [bill] vom [date] {einreichen|abrechnen}",
            "für [bill] habe ich am [date] [amount] ausgelegt und hätte sie gern zurück",
            "hiermit reiche ich eine Rechnung vom [date] über [amount] für [bill] ein",
        ),
        "report_absence": (
            "ich bin [span] [kind], bitte eintragen",
            "bitte tragt ein, dass ich [span] [kind] bin",
            "[span] bin ich [kind]",
        ),
    },
}
URGENT = {
    "en": {
        True: (
            ", and it cannot wait",
            ", we need it within the hour",
            ", very urgent",
            ", please right away",
        ),
        False: ("", "", ", no hurry", ", whenever you have time", ", next week is soon enough"),
    },
    "de": {
        True: (", und es ist eilig", ", bitte sofort", ", wir brauchen es in einer Stunde"),
        False: ("", "", ", es eilt nicht", ", irgendwann diese Woche reicht"),
    },
}
KINDS = {
    "en": {
        "parental": ("on parental leave", "with our newborn"),
        "sick": ("ill", "sick", "down with a fever"),
        "vacation": ("on vacation", "on holiday", "on leave"),
    },
    "de": {
        "parental": ("in Elternzeit",),
        "sick": ("krank", "krankgeschrieben"),
        "vacation": ("im Urlaub", "verreist"),
    },
}
SPANS = {
    "en": (
        "from [first_day] to [last_day]",
        "[first_day] until [last_day]",
        "between [first_day] and [last_day], both included",
    ),
    "de": ("vom [first_day] bis [last_day]", "ab dem [first_day] bis einschließlich [last_day]"),
}
ONE_DAY = {
    "en": ("on [first_day]", "on [first_day] only", "just [first_day]"),
    "de": ("am [first_day]", "nur am [first_day]"),
}
# what no tool can do, close to what one does
NEAR = {
    "en": (
        "how long must a password for [account] be",
        "please delete the account [user] from [account], {she|he} has left us",
        "my password for [account] works, it is {slow|very slow} though: who looks after the "
        "server",
        "{can|may} [user] get rights to write in [account]",
        "[user] has a new surname, so [account] should show it",
        "where on the [device] do I find the number for a report",
        "[asset] works again, so {please close|you can close} my report",
        "{is there|do we have} a manual for the [device]",
        "may I take the old [device] [asset] home",
        "who is using the [device] [asset] now",
        "is [room] free on [date] at [start]",
        "please cancel [room] on [date], we do not need it any more",
        "move our meeting on [date] from [room] to the canteen",
        "does [room] have a whiteboard, and how many people fit in",
        "order {coffee|sandwiches} for [people] to [room] on [date]",
        "when will the [item] that I ordered arrive",
        "cancel my order of a [item], cost centre [cost_center]",
        "the [item] is too {small|loud} for me, where do I send it back",
        "which cost centre pays for a [item] in the lab",
        "how much may a [item] cost",
        "when is my claim over [amount] paid out",
        "I handed in [amount] of [date] twice, delete one of them",
        "what is the limit for a hotel in {Delft|Basel}",
        "who {checks|signs} bills over [amount]",
        "how many days of vacation have I left",
        "please take back my vacation from [date] on, I {will work|shall be here}",
        "who stands in for {Ines|Hamish|Farid} while {she|he} is ill",
        "can I carry five days of leave over to next year",
        "do I have to bring a certificate from the first day of being ill on",
        "please translate the wiki page on fire drills",
    ),
    "de": (
        "wie lang muss ein Passwort für [account] sein",
        "bitte das Konto [user] in [account] löschen",
        "ist [room] am [date] um [start] frei",
        "bitte [room] am [date] stornieren",
        "wann kommt das Headset, das ich bestellt habe",
        "wann wird meine Rechnung über [amount] ausgezahlt",
        "wie viele Urlaubstage habe ich noch",
        "mein Urlaub ab [date] fällt aus, bitte nehmt ihn zurück",
        "[asset] läuft wieder, ihr könnt die Meldung schließen",
        "darf ich den alten Laptop [asset] mit nach Hause nehmen",
    ),
}
# said in passing: nothing is asked for
ASIDES = {
    "en": {
        "reset_password": (
            "My password {is fine|works} again, {thanks for that|many thanks}.",
            "{Edda|Otto|Jonas|Vera} {already|has just} reset the one for [account].",
            "{No need to|You need not|Please do not} touch [user], {that one works|all is well "
            "there}.",
            "The {VPN|wiki|payslip portal} was down on {Monday|Tuesday|Friday}, as {everybody "
            "knows|you saw}.",
            "I {write my password on no slip|keep no passwords} any more, {promised|I have "
            "learned}.",
            "The {new|longer} passwords {are a nuisance|are hard to type}, but so be it.",
            "For [account] {I could|we could} log in without trouble {today|this week}.",
            "[user] was locked {last week|in spring}, which {you mended|is over}.",
        ),
        "report_fault": (
            "The printer on the {second|third|ground} floor {works again|prints again}.",
            "[asset] was {picked up|taken away|mended} {yesterday|this morning}, {thank you|at "
            "last}.",
            "You {repaired|exchanged} my {laptop|phone|screen} so {quickly|well} last time.",
            "The projector is {loud|dim|old}, but {that is no matter|we are used to it|it does}.",
            "My [device] {runs like new|gives no trouble} since {May|the repair}.",
            "{Jonas|Wilma} {saw|looked} to the [device] [asset], {nothing to do there|so leave "
            "it}.",
            "That the copier {smells of glue|squeaks} {I can live with|is an old story}.",
            "The screen in the {canteen|lobby} {is back|shows the menu again}.",
        ),
        "book_room": (
            "{Rosa|Umar|Keiko|Otto} has {booked|taken} [room] for us already.",
            "We {met|sat} in [room] on [date].",
            "The {meeting|workshop|interview} in [room] {went well|took long|was short}.",
            "You need not {book|look for} a room {for this|for us}.",
            "[room] was {too warm|full|rather noisy} {last time|on Monday}.",
            "{Our|The weekly} meeting {stays|is} in [room] as {ever|always}.",
            "With [people] we {got by|sat} in the {canteen|kitchen} {today|on [date]}.",
            "{Farid|Greta} {has left|gives up} [room], {so I hear|she told us|he wrote}.",
        ),
        "order_equipment": (
            "The {two|three|new} {headsets|keyboards|chairs} {came|arrived} {this morning|at "
            "noon|yesterday}.",
            "A new {chair|dock|headset} is on its way, {I hear|they say|it seems}.",
            "I {do not want|need no} {bigger|second} monitor, {thank you|mine is good}.",
            "Cost centre [cost_center] is {the old one|closed}, {forget it|do not use it}.",
            "My {keyboard|chair} {will last|holds} another year.",
            "{Lars|Priya} {found|got} a [item] in the {cellar|store}, so that is {settled|done}.",
            "The {order|delivery} of {March|June} was {complete|quick}, {well done|I must say}.",
            "What [cost_center] {paid|spent} {last year|in spring} is {booked|closed}.",
        ),
        "claim_expense": (
            "My hotel bill of [date] was {paid back|refunded} {in time|at once|last week}.",
            "The [amount] for the {course|fair|ferry} are {settled|paid}.",
            "I paid {the taxi|the parking|the coffee} myself and {do not claim it|leave it at "
            "that}.",
            "{Priya|Lars|Zofia|Bram} {hands in|claims} the {dinner|train|lunch}.",
            "With [amount] the {inn|train} was {cheap|dear} {this time|for once}, the firm "
            "{paid|had it booked}.",
            "{Nobody|None of us} {had costs|spent anything} {on the way|in Leeds}.",
            "The {company card|travel office} {paid|took care of} {the flight|the rooms}.",
            "{Accounting|Ms Orr} has the {receipts|bills} {of [date]|already}.",
        ),
        "report_absence": (
            "My {vacation|leave} in {August|May|October} is {entered|in the calendar}.",
            "{Ines|Hamish|Tamsin} is {ill|away} until [date].",
            "I was {on leave|travelling|ill} last week, so I write {only now|late}.",
            "Nobody is {ill|away|on leave} here {at the moment|this week|just now}.",
            "{After|Since} my {holiday|leave} {I am|we are} {catching up|short of time}.",
            "{Farid|Nadia} {is back|came back} {from parental leave|from Crete} on [date].",
            "My {doctor|dentist} {sees me|had me} {after work|before nine}, {no absence|that needs "
            "no entry}.",
            "The {bank holiday|bridge day} {of [date]|next month} is {free for all|in the plan}.",
        ),
    },
    "de": {
        "reset_password": (
            "Mein Passwort {geht|stimmt} wieder, {danke|vielen Dank}.",
            "Das von [user] ist {schon neu|wieder in Ordnung}.",
            "{Edda|Otto} hat [account] {heute|gestern} {schon erledigt|selbst geschafft}.",
            "Die {langen|neuen} Passwörter {sind mühsam|merkt sich keiner}, {aber gut|na ja}.",
        ),
        "report_fault": (
            "Der Drucker im {zweiten|dritten} Stock {läuft|druckt} wieder.",
            "[asset] wurde {gestern|am Montag} {abgeholt|repariert}.",
            "Der Beamer ist {laut|alt}, {aber er tut es|das macht nichts}.",
            "Mein {Telefon|Notebook} {hält|läuft} {seit Mai|wie neu}.",
        ),
        "book_room": (
            "[room] hat {Rosa|Umar|Keiko} schon {gebucht|reserviert}.",
            "Wir {waren|saßen} am [date] in [room].",
            "Einen Raum {brauchen|suchen} wir {dafür|diesmal} nicht.",
            "In [room] war es {zu warm|laut}, {sonst gut|aber egal}.",
        ),
        "order_equipment": (
            "Die {Headsets|Stühle|Tastaturen} sind {heute|gestern} {gekommen|angekommen}.",
            "Einen {größeren|zweiten} Bildschirm brauche ich {nicht|keinesfalls}.",
            "Kostenstelle [cost_center] {ist alt|gilt nicht mehr}.",
            "{Lars|Priya} hat {im Keller|im Lager} noch {ein Dock|einen Stuhl} gefunden.",
        ),
        "claim_expense": (
            "Das Hotel vom [date] ist schon {erstattet|bezahlt}.",
            "{Das Taxi|Das Parken|Den Kaffee} zahle ich {selbst|privat}.",
            "Die [amount] für {den Kurs|die Messe} sind {verbucht|da}.",
            "{Bram|Zofia} {reicht|gibt} das Essen {ein|ab}.",
        ),
        "report_absence": (
            "Mein Urlaub im {August|Mai} steht {schon drin|im Kalender}.",
            "{Ines|Hamish} ist bis [date] {krank|weg}.",
            "{Krank|Verreist} ist hier {gerade|diese Woche} niemand.",
            "{Farid|Nadia} ist {seit gestern|wieder} {zurück|da}.",
        ),
    },
}
OPENERS = {
    "en": (
        "Hello,",
        "Hi there,",
        "Good morning,",
        "Dear help desk,",
        "Hi all,",
        "Thanks for your quick help last week.",
        "I hope I am right here.",
        "Sorry to bother you again.",
        "{Bram|Keiko|Zofia} from {sales|the lab|assembly} writing.",
        "We are moving desks on the third floor.",
        "This is my first week at Tarnwick.",
        "It has been a busy day.",
        "I tried the form in the intranet first.",
        "A short one today.",
        "My colleague said that you can help.",
    ),
    "de": (
        "Hallo,",
        "Guten Morgen,",
        "Liebes Team,",
        "Danke für die schnelle Hilfe letzte Woche.",
        "Ich hoffe, ich bin hier richtig.",
        "Das Formular im Intranet ging leider nicht.",
        "Kurz und knapp:",
    ),
}
CLOSERS = {
    "en": (
        "Thank you!",
        "Thanks a lot, {Greta|Yusuf|Nadia}",
        "Best, {Cormac|Ada|Leif}",
        "Cheers",
        "Many thanks in advance.",
        "Call me if anything is unclear.",
        "I am at my desk until five.",
        "No answer is needed.",
        "Regards from the lab.",
    ),
    "de": (
        "Danke!",
        "Viele Grüße, {Greta|Yusuf|Nadia}",
        "Danke euch!",
        "Bin bis fünf am Platz.",
        "Gruß aus dem Labor.",
    ),
}
