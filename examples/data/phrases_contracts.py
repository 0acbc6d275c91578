"""Clauses of contracts with an invented maker of instruments, in German and English; all written
for this example.

`[name]` stands for a value of the contract, `[other:name]` for one of the same form that is not the
answer, and `{a|b}` for one of its alternatives.
"""

from __future__ import annotations

MONTHS = {
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
}
NAMES = (
    "Lindow",
    "Ashby & Cole",
    "Brücker",
    "Nordhaus",
    "Ahlers & Söhne",
    "Fenwright",
    "Kestrel Row",
    "Möllendorf",
    "Oakhanger",
    "Pöhlmann",
    "Quillmoor",
    "Rethmar",
    "Saltersby",
    "Tüschen",
    "Ullesworth",
    "Vierlinden",
    "Wexcombe",
    "Zellerfeld",
    "Grünwald & Pohl",
    "Harlesden",
    "Isenhagen",
    "Jarrowby",
    "Küstermann",
    "Marlstone",
)
TRADES = {
    "de": (
        "Software",
        "Gebäudetechnik",
        "Logistik",
        "Messtechnik",
        "Reinigung",
        "Beratung",
        "Druck",
        "Sicherheit",
    ),
    "en": (
        "Software",
        "Facilities",
        "Logistics",
        "Metrology",
        "Cleaning",
        "Consulting",
        "Print",
        "Security",
    ),
}
FORMS = {"de": ("GmbH", "AG", "KG", "GmbH & Co. KG"), "en": ("Ltd", "Limited", "LLP", "plc")}
CITIES = {
    "de": ("Hamburg", "Graz", "Erfurt", "Zürich", "Köln"),
    "en": ("Leeds", "Cork", "Bristol", "Hull", "York"),
}
LAWS = {
    "de": ("Deutschland", "Österreich", "Luxemburg", "Liechtenstein"),
    "en": ("Ireland", "England and Wales", "Scotland", "the Netherlands"),
}
PERIODS = {
    "de": (
        "drei Monate",
        "6 Monate",
        "sechs Wochen",
        "vier Wochen",
        "zwei Monate",
        "90 Tage",
        "120 Tage",
        "9 Monate",
    ),
    "en": (
        "three months",
        "6 months",
        "six weeks",
        "four weeks",
        "two months",
        "90 days",
        "120 days",
        "9 months",
    ),
}
THINGS = {  # what is delivered, and of what
    "de": (
        (
            "Wartung",
            "Kalibrierung",
            "Reinigung",
            "jährliche Prüfung",
            "Fernüberwachung",
            "Einrichtung",
            "Austausch",
        ),
        (
            "der Prüfstände",
            "der Klimakammern",
            "der Datensicherung",
            "der Waagen",
            "der Lüftung",
            "der Torantriebe",
            "des Lagersystems",
            "der Messköpfe",
            "der Brandmelder",
            "des Zeiterfassungssystems",
        ),
    ),
    "en": (
        (
            "maintenance",
            "calibration",
            "cleaning",
            "yearly inspection",
            "remote monitoring",
            "set-up",
            "replacement",
        ),
        (
            "of the test benches",
            "of the climate chambers",
            "of the backup system",
            "of the scales",
            "of the air ducts",
            "of the gate drives",
            "of the warehouse system",
            "of the probe heads",
            "of the smoke detectors",
            "of the time clocks",
        ),
    ),
}

TITLES = {
    "de": (
        "Rahmenvertrag",
        "Dienstleistungsvertrag",
        "Wartungsvertrag",
        "Vertrag über laufende Leistungen",
    ),
    "en": (
        "Framework Agreement",
        "Services Agreement",
        "Maintenance Agreement",
        "Agreement on Recurring Services",
    ),
}
HEADS = {  # of the clause that holds a term
    "contract_no": {"de": "Vertragsnummer", "en": "Reference"},
    "start_date": {"de": "Beginn", "en": "Commencement"},
    "notice_period": {"de": "Laufzeit und Kündigung", "en": "Term and termination"},
    "annual_fee": {"de": "Vergütung", "en": "Charges"},
    "governing_law": {"de": "Anwendbares Recht", "en": "Applicable law"},
    "contact_email": {"de": "Ansprechpartner", "en": "Contacts"},
    "deliverables": {"de": "Leistungsumfang", "en": "Scope of services"},
}
PARTIES = {
    "de": (
        "Zwischen der Tarnwick Instruments GmbH, [city] (Auftraggeberin), und der [supplier], "
        "[city] (Auftragnehmerin), wird {Folgendes|das Folgende} vereinbart.",
        "Die [supplier] mit Sitz in [city], nachfolgend Auftragnehmerin, erbringt für die Tarnwick "
        "Instruments GmbH, nachfolgend Auftraggeberin, die hier beschriebenen Leistungen. "
        "Bisherige Dienstleisterin war die [other:supplier].",
        "Auftraggeberin ist die Tarnwick Instruments GmbH, [city]. Auftragnehmerin ist die "
        "[supplier], [city].",
    ),
    "en": (
        "This agreement is made between Tarnwick Instruments GmbH of [city] (the Customer) and "
        "[supplier] of [city] (the Supplier).",
        "[supplier], whose office is in [city], is the Supplier under this agreement and Tarnwick "
        "Instruments GmbH is the Customer. The services were {formerly|until now} provided by "
        "[other:supplier].",
        "Customer: Tarnwick Instruments GmbH, [city]. Supplier: [supplier], [city].",
    ),
}
TERMS = {
    "contract_no": {
        "de": (
            "Dieser Vertrag wird unter der Nummer [contract_no] geführt.",
            "Vertragsnummer: [contract_no]. Die Angebotsnummer war [other:contract_no].",
            "Auf Rechnungen ist die Vertragsnummer [contract_no] anzugeben, nicht die "
            "Bestellnummer [other:contract_no].",
            "Der vorliegende Vertrag [contract_no] ersetzt den {früheren|alten} Vertrag "
            "[other:contract_no].",
        ),
        "en": (
            "This agreement is filed under number [contract_no].",
            "Contract number: [contract_no]. The number of the offer was [other:contract_no].",
            "Invoices shall quote contract number [contract_no] and not the purchase order "
            "[other:contract_no].",
            "This contract, [contract_no], replaces the {earlier|former} contract "
            "[other:contract_no].",
        ),
    },
    "start_date": {
        "de": (
            "Der Vertrag beginnt am [start_date]. Das Angebot {stammt|datiert} vom "
            "[other:start_date].",
            "Leistungsbeginn ist der [start_date]; die Abnahme der Einrichtung erfolgt bis zum "
            "[other:start_date].",
            "Dieser Vertrag tritt am [start_date] in Kraft und löst die Vereinbarung vom "
            "[other:start_date] ab.",
            "Vertragsbeginn: [start_date].",
        ),
        "en": (
            "This agreement starts on [start_date]. The offer {is dated|was made on} "
            "[other:start_date].",
            "The services begin on [start_date]; set-up is to be accepted by [other:start_date].",
            "This agreement takes effect on [start_date] and supersedes the agreement of "
            "[other:start_date].",
            "Commencement date: [start_date].",
        ),
    },
    "notice_period": {
        "de": (
            "Die Kündigungsfrist beträgt [notice_period] zum Ende eines {Quartals|Kalenderjahres}.",
            "Kündigungsfrist: [notice_period]. Zahlungsziel für Rechnungen: [other:notice_period].",
            "Beide Seiten können kündigen; die Frist dafür ist [notice_period]. Für Mängel gelten "
            "[other:notice_period].",
            "Die Frist für eine ordentliche Kündigung ist neu [notice_period], bisher galten "
            "[other:notice_period].",
        ),
        "en": (
            "Either party may terminate; the notice period is [notice_period] to the end of a "
            "{quarter|calendar year}.",
            "Notice period: [notice_period]. Time for payment of invoices: [other:notice_period].",
            "Termination requires notice of [notice_period] in writing. Defects are to be reported "
            "within [other:notice_period].",
            "The period of notice is now [notice_period]; it used to be [other:notice_period].",
        ),
    },
    "annual_fee": {
        "de": (
            "Die jährliche Vergütung beträgt EUR [annual_fee]. Die Einrichtung kostet einmalig EUR "
            "[other:annual_fee].",
            "Für alle Leistungen zahlt die Auftraggeberin EUR [annual_fee] im Jahr; die Haftung "
            "ist auf EUR [other:annual_fee] begrenzt.",
            "Jahrespreis: [annual_fee] EUR netto (im früheren Vertrag [other:annual_fee] EUR).",
            "Der Pauschalpreis je Vertragsjahr ist [annual_fee] EUR.",
        ),
        "en": (
            "The annual fee is EUR [annual_fee]. Set-up is charged once with EUR "
            "[other:annual_fee].",
            "For all services the Customer pays EUR [annual_fee] a year; liability is limited to "
            "EUR [other:annual_fee].",
            "Yearly charge: EUR [annual_fee] net (EUR [other:annual_fee] under the previous "
            "contract).",
            "The flat price of each contract year is EUR [annual_fee].",
        ),
    },
    "governing_law": {
        "de": (
            "Es gilt das Recht von [governing_law]. Gerichtsstand ist [city].",
            "Auf diesen Vertrag ist das Recht von [governing_law] anzuwenden, nicht mehr das von "
            "[other:governing_law].",
            "Anwendbares Recht: [governing_law]; das UN-Kaufrecht ist ausgeschlossen.",
        ),
        "en": (
            "This agreement is governed by the laws of [governing_law]. Place of jurisdiction is "
            "[city].",
            "The laws of [governing_law] apply, and no longer those of [other:governing_law].",
            "Governing law: [governing_law]. The UN Convention on the Sale of Goods is excluded.",
        ),
    },
    "contact_email": {
        "de": (
            "Fragen zum Vertrag beantwortet [contact_email]. Rechnungen gehen an "
            "[other:contact_email].",
            "Ansprechpartner für diesen Vertrag: [contact_email]; Datenschutz: "
            "[other:contact_email].",
            "Vertragliche Mitteilungen sind an [contact_email] zu richten, Störungen an "
            "[other:contact_email].",
        ),
        "en": (
            "Questions about this contract are answered by [contact_email]. Invoices go to "
            "[other:contact_email].",
            "Contract contact: [contact_email]; data protection: [other:contact_email].",
            "Notices under this contract are sent to [contact_email], faults are reported to "
            "[other:contact_email].",
        ),
    },
}
DELIVERS = {  # before the items, and after them about one that is not among them
    "de": (
        (
            "Die Auftragnehmerin {erbringt|übernimmt} diese Leistungen:",
            "Nicht {enthalten|vereinbart}: [other:deliverables].",
        ),
        ("Gegenstand des Vertrags:", "Gesondert zu bestellen ist: [other:deliverables]."),
    ),
    "en": (
        (
            "The Supplier {provides|shall provide} these services:",
            "Not {included|agreed}: [other:deliverables].",
        ),
        ("Subject of this contract:", "To be ordered separately: [other:deliverables]."),
    ),
}
LABELS = {  # of a table of terms
    "de": {
        "supplier": "Auftragnehmerin",
        "contract_no": "Vertragsnummer",
        "start_date": "Vertragsbeginn",
        "notice_period": "Kündigungsfrist",
        "annual_fee": "Jahrespreis (EUR)",
        "governing_law": "Anwendbares Recht",
        "contact_email": "Ansprechpartner für den Vertrag",
    },
    "en": {
        "supplier": "Supplier",
        "contract_no": "Contract number",
        "start_date": "Commencement date",
        "notice_period": "Notice period",
        "annual_fee": "Yearly charge (EUR)",
        "governing_law": "Governing law",
        "contact_email": "Contract contact",
    },
}
ABOUT = {
    "parties": {"de": "Vertragsparteien", "en": "Parties"},
    "table": {"de": "Eckdaten des Vertrags", "en": "Key terms"},
    "prices": {"de": "Preisliste für Ersatzteile", "en": "Price list of spare parts"},
    "log": {"de": "Einsatzprotokoll des Vorjahres", "en": "Log of last year's visits"},
    "signed": {
        "de": "[city], den [other:start_date]\nUnterschriften: ____________  ____________",
        "en": "[city], [other:start_date]\nSignatures: ____________  ____________",
    },
    "greeting": {"de": "Sehr geehrte Damen und Herren,", "en": "Dear Sir or Madam,"},
    "closing": {"de": "Mit freundlichen Grüßen\n[person]", "en": "Yours faithfully\n[person]"},
    "reason": {
        "de": (
            "wir bestätigen Ihnen die Bedingungen unserer Zusammenarbeit.",
            "wie am [other:start_date] besprochen, halten wir die Vereinbarung hiermit schriftlich "
            "fest.",
            "vielen Dank für Ihren Auftrag, den wir zu diesen Bedingungen annehmen.",
        ),
        "en": (
            "we confirm the terms of our cooperation.",
            "as discussed on [other:start_date], this letter sets out what we have agreed.",
            "thank you for your order, which we accept on these terms.",
        ),
    },
    "mail": {
        "de": (
            "anbei der Vertrag, wie am [other:start_date] besprochen. Bitte ablegen.",
            "im Anhang finden Sie die gegengezeichnete Fassung. Die Fassung vom [other:start_date] "
            "ist hinfällig.",
        ),
        "en": (
            "please find the contract attached, as discussed on [other:start_date].",
            "the countersigned version is attached. Please discard the one of [other:start_date].",
        ),
    },
}

CLAUSES = {  # boilerplate: (heading, text)
    "de": (
        (
            "Mitwirkung",
            "Die Auftraggeberin gewährt {Zugang zu|Zutritt zu} den Räumen und stellt Strom, Wasser "
            "und Netz bereit. Sie nennt der Auftragnehmerin {eine Person|zwei Personen}, die vor "
            "Ort Auskunft {gibt|geben kann}.",
        ),
        (
            "Vertraulichkeit",
            "Unterlagen, Zeichnungen und Messwerte der {anderen Seite|Gegenseite} sind vertraulich "
            "zu behandeln. Das gilt nicht für Angaben, die {öffentlich bekannt sind|schon vorher "
            "bekannt waren}.",
        ),
        (
            "Haftung",
            "Beide Seiten haften für Vorsatz und grobe Fahrlässigkeit unbegrenzt. Im Übrigen ist "
            "die Haftung auf den {vorhersehbaren|typischen} Schaden begrenzt, entgangener Gewinn "
            "wird nicht ersetzt.",
        ),
        (
            "Höhere Gewalt",
            "Hochwasser, Sturm, Streik und {Ausfall des Stromnetzes|behördliche Sperren} entbinden "
            "für ihre Dauer von der Leistungspflicht. Die betroffene Seite {meldet das|zeigt das} "
            "unverzüglich an.",
        ),
        (
            "Datenschutz",
            "Personenbezogene Daten werden nur verarbeitet, soweit es {der Vertrag|die Leistung} "
            "verlangt. Protokolle werden nach {zwölf|vierzehn} Monaten gelöscht, Sicherungen mit "
            "der nächsten Rotation.",
        ),
        (
            "Nachunternehmer",
            "Nachunternehmer setzt die Auftragnehmerin nur mit {vorheriger|schriftlicher} "
            "Zustimmung ein. Sie steht für deren Arbeit ein wie für ihre eigene. Der Einsatz der "
            "[other:supplier] ist genehmigt.",
        ),
        (
            "Arbeitssicherheit",
            "Das Personal trägt die vorgeschriebene Schutzkleidung und nimmt {vor dem ersten "
            "Einsatz|jährlich} an einer Unterweisung teil. Mängel an Geräten sind sofort {zu "
            "melden|schriftlich anzuzeigen}.",
        ),
        (
            "Abnahme",
            "Über jede Leistung wird ein Protokoll geführt. Sie gilt als abgenommen, wenn die "
            "Auftraggeberin nicht binnen {zehn|zwölf} Werktagen Mängel {rügt|mitteilt}.",
        ),
        (
            "Reaktionszeiten",
            "Störungen der Stufe A werden innerhalb von {vier|acht} Stunden bearbeitet, solche der "
            "Stufe B am {nächsten|übernächsten} Werktag. Die Zeiten gelten werktags von 7 bis "
            "{17|18} Uhr.",
        ),
        (
            "Schriftform",
            "Änderungen bedürfen der {Schriftform|Textform}; das gilt auch für diese Klausel. "
            "Mündliche {Abreden|Nebenabreden} bestehen nicht.",
        ),
        (
            "Versicherung",
            "Die Auftragnehmerin unterhält eine Betriebshaftpflicht mit einer Deckung von "
            "mindestens EUR [other:annual_fee] je Schadensfall und weist sie {jährlich|auf "
            "Verlangen} nach.",
        ),
        (
            "Werkzeuge",
            "Werkzeuge und Messmittel bringt die Auftragnehmerin mit. Ihre "
            "{Kalibrierscheine|Prüfmarken} dürfen nicht älter als ein Jahr sein; "
            "Verbrauchsmaterial ist {im Preis enthalten|gesondert auszuweisen}.",
        ),
    ),
    "en": (
        (
            "Cooperation",
            "The Customer grants access to its {rooms|premises} and supplies power, water and a "
            "network. It names {a person|two persons} on site who can {answer questions|give "
            "information}.",
        ),
        (
            "Confidentiality",
            "Documents, drawings and readings of the other party are {kept confidential|not "
            "disclosed}. This does not hold for information that {is public|was known before}.",
        ),
        (
            "Liability",
            "Each party is liable without limit for intent and gross negligence. Beyond that, "
            "liability is limited to the {foreseeable|typical} damage, and lost profit is not "
            "compensated.",
        ),
        (
            "Force majeure",
            "Floods, storms, strikes and {power cuts|official closures} suspend the obligations "
            "for as long as they last. The party concerned {reports this|gives word} without "
            "delay.",
        ),
        (
            "Data protection",
            "Personal data are processed only as far as {the contract|the service} requires. Logs "
            "are erased after {twelve|fourteen} months, backups with the next rotation.",
        ),
        (
            "Subcontractors",
            "The Supplier engages subcontractors with {prior|written} consent only and answers for "
            "their work as for its own. The engagement of [other:supplier] is approved.",
        ),
        (
            "Safety at work",
            "Staff wear the prescribed protective clothing and are instructed {before the first "
            "visit|every year}. Defects of equipment are reported {at once|in writing}.",
        ),
        (
            "Acceptance",
            "A record is kept of each service. It counts as accepted unless the Customer reports "
            "defects within {ten|twelve} working days after it {was rendered|has ended}.",
        ),
        (
            "Response times",
            "Faults of level A are attended to within {four|eight} hours, those of level B on the "
            "{next|second} working day. These times hold on working days from 7 a.m. to {5|6} p.m.",
        ),
        (
            "Written form",
            "Changes must be made in {writing|text form}; this also holds for this clause. There "
            "are no oral {agreements|side agreements}.",
        ),
        (
            "Insurance",
            "The Supplier holds liability insurance with cover of at least EUR [other:annual_fee] "
            "for each event and proves it {every year|on demand}.",
        ),
        (
            "Tools",
            "The Supplier brings tools and gauges. Their {certificates|test marks} must not be "
            "older than a year; consumables are {included in the price|listed separately}.",
        ),
    ),
}
PARTS = {
    "de": (
        "Dichtring",
        "Filtereinsatz",
        "Messkopf",
        "Kabelsatz",
        "Lüfterrad",
        "Netzteil",
        "Sensor",
        "Ventil",
    ),
    "en": (
        "gasket",
        "filter insert",
        "probe head",
        "cable set",
        "fan wheel",
        "power supply",
        "sensor",
        "valve",
    ),
}
COLUMNS = {
    "prices": {"de": ("Artikel", "Bezeichnung", "Preis"), "en": ("Article", "Part", "Price")},
    "log": {"de": ("Datum", "Ort", "Stunden"), "en": ("Date", "Place", "Hours")},
}
