"""Phrases for the support tickets: what customers of the invented shop Brindlecove ask, and what
they only mention.

A ticket's category is the request in it. The same situations lead to different requests, and a
ticket may name another request only to exclude it, to say that it is done, or in a quoted mail. A
phrase is one line: ``{a|b|c}`` picks one alternative (they nest, and one may be empty), ``[name]``
is filled by the slot of that name in ``generate.py``, and ``@`` and ``~`` in a frame are replaced
by the action that it is about.
"""

from __future__ import annotations

from dataclasses import dataclass

from phrases_support import lines


@dataclass(frozen=True)
class Request:
    """One category: its share of the tickets, and the ways to say it.

    do: what the shop shall do, after "please". want: what the sender wants, as an object. say:
    whole sentences. done: what the shop did, after "you". matter: the topic, as a subject. notes:
    sentences of the shop's own mails.
    """

    count: int
    fits: str  # names of the situations that lead to it
    near: str  # categories that such a ticket may also name
    do: tuple[str, ...]
    want: tuple[str, ...]
    say: tuple[str, ...]
    done: tuple[str, ...]
    matter: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class GermanRequest:
    """The same in German: do is an infinitive, want an accusative."""

    do: tuple[str, ...]
    want: tuple[str, ...]
    say: tuple[str, ...]
    notes: tuple[str, ...]


REQUESTS: dict[str, Request] = {
    "refund": Request(
        count=385,
        fits="faulty faulty damaged late wrong charged plan gift",
        near="replacement replacement repair cancellation invoice delivery_status",
        do=lines("""
            {refund|reimburse} {me|the [thing]|the full amount}
            {give|send} me my money back
            {transfer|pay} the [amount] back to {my account|my card|me}
            {put|book} the [amount] back on {my card|the card I used}
            return what I paid for {it|[order]|the [thing]}
            undo the payment {of [amount]|for [order]|from [date]}
            {credit|repay} the [amount] {to my account|by bank transfer|}
            pay me back {in full|the price of the [thing]|what I spent on it}
        """),
        want=lines("""
            {a|a full|the} refund{ for the [thing]| for [order]|}
            my money back{, all of it| for the [thing]|}
            the [amount] {back on my card|back|returned to my account}
            what I paid {back|for [order] back}
            {the price|the cost} of the [thing] back
            {a repayment|reimbursement} {of [amount]|for the [thing]|}
        """),
        say=lines("""
            when {will I see|do I get} {the money|my [amount]} {again|for what I returned}?
            {where is|what happened to} the money {for the parcel I sent back|you owe me for the return|for my return}?
            {how long|how many days} until {the amount|my [amount]|what I paid} is back {on my card|with my bank}?
            the return {reached|got to} you [ago] and {my bank shows nothing|nothing was paid out yet}
            I {only|simply} want {my euros|to have the amount|the sum} back{, nothing more|}
            {I'd rather have|give me} {cash|the money}, {the [thing] can stay with you|you may keep the [thing]}
            {my account|the card} is still [amount] short, {please put that right|when do you settle it}?
            do I get {everything|the whole sum|the full price} back {or only a part|including postage}?
            {you took|you charged} [amount] {too much|for nothing}, I want that {returned|back}
            I expect the {sum|amount} {on my account by [day]|back within a week}
            what is left to do before {you pay out|I get my money}?
            I'm entitled to {get the price back|my money}, {so please arrange that|it's within the 14 days}
        """),
        done=lines("""
            {refunded|reimbursed} {the shipping|another order|an earlier order} [ago]
            gave me {my money|the [amount]} back {in [month]|for the first one}
            {credited|transferred} {[amount]|the [amount]} {on [day]|last month}
        """),
        matter=lines("""
            {the|my} refund
            the money {question|part|side}
            {the|that} repayment
            getting my money back
        """),
        notes=lines("""
            {Your|The} refund of [amount] {has been issued|is on its way|was booked on [date]}.
            We have {returned|transferred} [amount] to {your card|the account you named}.
            {If you prefer|Should you prefer} {a refund|your money back}, {let us know|please reply to this mail}.
            {Refunds|Repayments} take {five|seven} working days{ to reach your bank|}.
            We {can offer you|suggest} {a refund|a full refund|your money back}{ for [order]|}.
        """),
    ),
    "replacement": Request(
        count=330,
        fits="faulty faulty damaged damaged wrong wrong gift",
        near="refund refund repair delivery_status setup_help",
        do=lines("""
            send me {a new|another|a working|a fresh} {one|[thing]}
            {replace|exchange|swap} {it|the [thing]}{ for a new one| for one that is whole|}
            {swap|exchange} it for {the right one|the one I ordered|another colour|the larger size}
            {ship|post|send} a {new [thing]|second one|replacement}{ to me| by [day]|}
            let me have {a different|a new|another} {one|[thing]}
            {give me|get me} {a new one|another one|the correct [thing]} {instead|in exchange|}
            {send|deliver} {the same [thing]|the [thing]|it} {again|once more, intact}
        """),
        want=lines("""
            {a replacement|a replacement [thing]}
            {a new one|a new [thing]|another [thing]}
            {an exchange|a swap}{ for the right one| for a new one|}
            {a [thing] that works|an intact one|one without a crack}
            the {[thing]|one} {that I ordered|from the picture|I chose}
            {the same [thing] once more|a fresh [thing]|a second [thing]}
        """),
        say=lines("""
            {when|how soon} can I {have|expect} {the new one|another [thing]|a new [thing]}?
            {how do I|can I} {swap|exchange} it {for another one|for the size I need|}?
            I {still|really} {want|need} {the [thing]|this [thing]}, {just one that's not broken|only a sound one}
            is there {a fresh one|another one|a new one} {for me|you can send|in exchange}?
            {could I|may I} have {the blue one|the bigger one|a different colour} {in place of this|instead}?
            I'd {happily keep|love to keep} a [thing], {but not this one|so please let me have a good one}
            {what must I do|where do I write} to {get a new one|have it exchanged}?
            {send|you may collect} the old one and {bring|leave} a new one {the same day|with me}
            a new [thing] {by [day]|this week} would {make me happy|settle it}
            {another specimen|one more [thing], a whole one}, that is all I ask
        """),
        done=lines("""
            {sent me a new [device]|replaced the [device]|exchanged my [device]} {in [month]|last year|[ago]}
            {shipped|delivered} {a replacement|another one} {on [day]|[ago]}
            {swapped|exchanged} {the first one|one before} {without questions|at once|}
        """),
        matter=lines("""
            {the|a} {replacement|exchange}
            {the|my} swap
            {the new one|a new one}
            exchanging it
        """),
        notes=lines("""
            {Your|The} replacement {was packed|has left our warehouse|is on its way}{ as BC-10442|}.
            We will {gladly|of course} {send you a new one|exchange the item|replace the [thing]}.
            {Please keep|Do keep} the box, {we exchange|we will replace} {the item|it} {free of charge|at no cost}.
            A new [thing] has been {reserved|packed|set aside} for you.
            {Exchanges|Replacements} are {free|possible} within 30 days.
        """),
    ),
    "repair": Request(
        count=245,
        fits="faulty",
        near="replacement replacement refund refund setup_help invoice",
        do=lines("""
            {repair|fix|mend} {it|my [device]|the [device]}
            have {it|the [device]} {repaired|mended|put right} {in your workshop|under the guarantee|}
            {take|let your workshop take} a look at the [device]{ and get it going again|}
            {get|bring} my [device] {back into working order|running again}
            {exchange|change|renew} only the {seal|battery|motor|switch|heating plate} {in it|of my [device]}
            {collect|pick up} {it|the [device]} {for repair|and mend it|and fix it}
        """),
        want=lines("""
            {a repair|a repair under the guarantee|the repair}
            {my [device]|the old one|this one} {repaired|mended|fixed}
            {a repair label|the form for a repair|a repair appointment}
            {a technician|your workshop} to {look at it|open the [device]|mend it}
            {my own [device]|this one} back, {working|repaired|in order}
            {only the {seal|battery|motor|switch}} {changed|renewed}
        """),
        say=lines("""
            {can|could} {your workshop|a technician|someone} {mend|see to|look at} {it|this}?
            {what does a repair cost|is the repair covered} {after two years|under the guarantee}?
            where do I {send it|bring the [device]} {to have it mended|for repair|so somebody can fix it}?
            {is it|would it be} {worth mending|possible to mend it|repairable}, and {who does that|how do I send it}?
            I'm {fond of|attached to} {this one|the old thing} and want it {mended|working again}
            {do you|does anyone at your place} still {mend|repair} [device]s like mine?
            how long {does the workshop need|would I be without it} {for a [device]|if you mend it}?
            it {surely|probably} needs {a new seal|one new part}, {would you fit it|can you put it in}?
            {I'd like|let me} {to post it in|to hand it in} so that {it gets mended|your people can mend it}
        """),
        done=lines("""
            {repaired|mended|fixed} {it|the [device]} {once|in [month]|before}
            {had it|had my [device]} in {the workshop|repair} {[ago]|for [span]}
            changed {the seal|the battery|the switch} [ago]
        """),
        matter=lines("""
            {the|a} repair
            {the workshop|your workshop}
            mending it
            {the last|an earlier} repair
        """),
        notes=lines("""
            {Your [device]|The device} {has been repaired|is in our workshop|was mended} {and tested|since [date]|}.
            Our workshop {can|will} {repair|mend} {it|the [device]} {within 7 working days|under the guarantee}.
            {Please use|Attached is} the {repair label|label for our workshop}.
            {A repair|Mending it} is {free|covered} {for 3 years|under the guarantee}.
        """),
    ),
    "delivery_status": Request(
        count=380,
        fits="late late late late plan gift moved",
        near="refund refund cancellation replacement replacement address_change invoice",
        do=lines("""
            {tell me|let me know} where {my parcel|[order]|the [thing]} is
            {find out|check|look up} where {the parcel|[order]|it} {is stuck|got to|has gone}
            {trace|track down|chase} {my parcel|[order]|the package}
            {ask|call|chase} the {courier|carrier} {about [order]|where it is|}
            {tell me|say} {when|on which day} {it|the [thing]|[order]} {arrives|will be here|comes}
            {give|send} me {a tracking number|the tracking link|a delivery date}
        """),
        want=lines("""
            {news|an update|some news} {about my parcel|on [order]|of the [thing]}
            {a tracking number|the tracking link|a new tracking number}
            {a date|a delivery date|a day} {for the [thing]|for [order]|I can plan with}
            {to know|to hear} {where it is|when it comes|where my parcel got to}
            {the whereabouts|the status} of {[order]|my parcel}
            my parcel {traced|found}
        """),
        say=lines("""
            where is {it|my parcel|the [thing]|[order]}{ now| at the moment|}?
            when {does it|will it|will the [thing]} {arrive|come|get here|reach me}?
            {has|did} {it|[order]|the parcel} {left yet|even been sent|actually ship}?
            {how much longer|how many more days} {do I wait|will it take|until it's here}?
            {any|is there any} {news|sign|word} {of it|of the parcel|from the courier|on [order]}?
            is it {lost|still coming|on the road|stuck somewhere}?
            {what's the hold up|what is happening} with {it|[order]|the delivery}?
            will it {be here|arrive} {before [day]|by [date]|this week}?
            tracking {hasn't moved|says the same} since [day], {what is going on|is anyone looking into it}?
            I {just|only} {wonder|want to know} {when to be at home for it|which day it comes|if it's still on its way}
            {should I|do I have to} {keep waiting|stay home again}, {or has it gone missing|what does the driver say}?
        """),
        done=lines("""
            {told me|wrote} {it was on its way|"in transit"|where the last one was} {[ago]|on [day]}
            {traced|found} {my last parcel|a parcel for me} {in [month]|at the depot}
            {sent|gave} me {a tracking link|a tracking number} {for the first box|[ago]}
        """),
        matter=lines("""
            {the|my last} delivery
            {the parcel|the late parcel|my other parcel}
            {the tracking|tracking}
            where the parcel is
        """),
        notes=lines("""
            {Your parcel|[order]} {has left our warehouse|was handed to the courier|is on its way}.
            {It|Your parcel} {will arrive|is expected} {on [day]|by [date]|within three days}.
            {Track|You can track} {your parcel|it} {with the link below|in your account}.
            {The courier|Our carrier} {reports a delay|is looking for your parcel|tried to deliver on [day]}.
        """),
    ),
    "cancellation": Request(
        count=315,
        fits="plan plan plan late charged moved wrong ordered ordered",
        near="refund refund address_change delivery_status account_access replacement",
        do=lines("""
            {cancel|stop} {it|[order]|the order|the [plan]|my [plan]}
            {end|terminate|close} {the [plan]|my [plan]|the contract|my subscription}
            {take|strike} the [thing] {off my order|out of [order]}
            {call off|withdraw|annul} {the order|[order]}{ before it ships|}
            {stop|hold back} {the next box|[order]} {before it ships|for good}
            {remove me from|sign me off} the [plan]
        """),
        want=lines("""
            {the|a} cancellation {of [order]|of the [plan]|in writing}
            {out of|to leave|to quit} the [plan]
            {the order|[order]|the [plan]} {cancelled|stopped|ended}
            {no more|no further} {boxes|deliveries}{ from the [plan]|}
            {the end of|notice given for} {the [plan]|my subscription}
            to {cancel|stop|withdraw from} {[order]|the [plan]|it}
        """),
        say=lines("""
            {how|where} do I {get out of|leave|quit} the [plan]?
            {is it|am I} {too late|still in time} to {stop|call off|withdraw} {the order|[order]|it}?
            {the [plan]|my [plan]} {should end|must stop|ends} {this month|with [month]|now}
            I {no longer need|don't need} {[order]|the [thing]|the [plan]}, {nothing has shipped yet|so stop it}
            {this was|it was} {ordered by mistake|my son's click}, {so don't pack it|nothing should be sent}
            {this month's box|the next box|the [month] box} should be {the last|my last one}
            what is the {notice period|last day} {for the [plan]|if I want to stop}?
            I {give notice on|hereby quit|withdraw from} the [plan]
            {let it run out|no renewal, please}, {I've had enough of|we can't drink that much of} the [plan]
            I {bought|found} {one|the [thing]} {elsewhere|in a shop here}, {so yours need not come|please stop mine}
        """),
        done=lines("""
            {cancelled|stopped} {another order|my first order|the [plan] of my wife} {[ago]|in [month]}
            {ended|closed} {my old contract|the trial} {without trouble|[ago]}
            took {one item|the mug} off my order [ago]
        """),
        matter=lines("""
            {the|a} cancellation
            {cancelling|stopping} {it|the order}
            {leaving|ending} the [plan]
            {the|my} notice
        """),
        notes=lines("""
            {Your|The} {order|[plan]} {has been cancelled|was stopped|ends on [date]}.
            We {confirm|have noted} {the cancellation|the end of your [plan]|your notice}.
            {You may|You can} {cancel|end} {the [plan]|your plan|an order} {at any time|every month|before it ships}.
            {To cancel|To stop it}, {reply to this mail|click the link}.
        """),
    ),
    "address_change": Request(
        count=200,
        fits="moved moved moved late plan gift ordered",
        near="delivery_status delivery_status cancellation cancellation account_access invoice",
        do=lines("""
            {send|deliver|redirect} {it|[order]|the [plan]} to {[street]|[street], [city]|my office at [street]}
            {change|update|correct} {my address|the address|the delivery address}{ to [street]| of [order]|}
            {put|enter|save} {[street]|[street] in [city]} {as my address|in my account|on the label}
            {ship|bring} {everything|all boxes|the next one} to {[city]|the new flat|our new house} {from now on|}
            {replace|delete} my old address{ by [street]|, we live at [street]}
            {leave|drop} {it|[order]} {with|at} {my neighbour at [street]|the shop at [street]}
        """),
        want=lines("""
            {another|a new|a different} {address|delivery address} {for [order]|on the parcel|in my account}
            {it|[order]|the [plan]} {sent|delivered|redirected} to {[street]|my office|the new place}
            {my address|the house number|the postcode} {changed|corrected|updated}
            {my parcels|the boxes} to {go|come} to [street]{, [city]|}
            {[street]|[street], [city]} {on the label|as the address}
        """),
        say=lines("""
            {my new|our new} {address|place} is [street]{, [city]|}{, please note it|}
            {from [date]|as of [month]} {we live|I'm} {in [city]|at [street]}
            {can|could} the parcel {go|still go} to {[street]|my work|a pickup shop} {instead|in place of my home}?
            {the house number is wrong|I gave the wrong street}, {it should be|the right one is} [street]
            {where|how} do I {change|enter|correct} {the address|my street}{ in the account|}?
            {is it|would it be} possible to {have it brought to|deliver to} {my office|[street]}?
            {the label|your file} still {says|has} {the old street|our old flat}, it's [street] now
            my {parents|neighbours} at [street] will {take it|be home}, {please send it there|so bring it to them}
        """),
        done=lines("""
            {changed|updated|noted} {my address|the new street} {[ago]|in [month]|for the last box}
            {redirected|sent} {the last box|one parcel} to {my office|[street]}
            {corrected|fixed} the house number [ago]
        """),
        matter=lines("""
            {the|my} {address|new address|change of address}
            {the|our} move
            {where to send it|where it goes}
        """),
        notes=lines("""
            {We have|Your account now has} {your new address|the address [street]}{ since [date]|}.
            {Your address|The delivery address} {was changed|has been updated}{ to [street]|}.
            {Please check|Do check} {the address|your address} {below|in your account}{: [street]|}.
            {We can|The courier can} {redirect|deliver} {it|your parcel} to {another address|a neighbour}.
        """),
    ),
    "invoice": Request(
        count=260,
        fits="charged charged faulty moved gift wrong plan ordered ordered",
        near="refund refund address_change delivery_status replacement account_access",
        do=lines("""
            {send|mail|e-mail} me {the invoice|the receipt|a copy of the invoice|the bill}{ for [order]|}
            {correct|reissue|redo} the {invoice|bill} {with my VAT number|in the firm's name|with the right name}
            {put|write} {my company|the VAT number|our firm's name} on the {invoice|receipt}
            {issue|make out} {an invoice|a proper invoice|a receipt} {for [order]|over [amount]|to my company}
            {attach|resend} the {invoice|receipt|PDF} {once more|again|}
            {split|write} the invoice {into two|on one page, with tax}
        """),
        want=lines("""
            {the|an} {invoice|invoice for [order]|invoice with VAT}
            {a receipt|the receipt|a proof of purchase}{ for the [thing]|}
            {a copy|another copy|a PDF} of the {invoice|bill}
            {a corrected|a new|a proper} {invoice|bill}{ with our firm's name|}
            {the tax|the VAT} {shown on the bill|on paper}
            something {on paper|in writing} {with the price and date|for my accountant|for the tax office}
        """),
        say=lines("""
            {where|how} {do I find|can I download} the {invoice|receipt|bill}?
            {my accountant|the tax office|my boss|the insurance} {asks for|wants|needs} {the bill|a receipt|the invoice}
            {there was no|I got no|I can't find the} {invoice|receipt|bill} {in the parcel|in my mails|anywhere}
            the {invoice|bill} {shows|has|names} {the wrong name|no VAT number}, {can you change that|I need it right}
            {may I have|is there} {proof that I paid|a proof of purchase|something to show I bought it}?
            for {my expenses|our books|the guarantee} I {must show|hand in} {the bill|a proof of purchase|the receipt}
            {the PDF|the attachment} {is empty|won't open}, {I need the bill for [month]|another copy of the bill}
            {can you|could it} {state|show} the {tax|VAT} {separately|on the bill}?
        """),
        done=lines("""
            {sent|mailed} me {the invoice|a receipt|the bill} {[ago]|in [month]|for another order}
            {corrected|reissued} {the bill|an invoice} {[ago]|last year}
            {put|wrote} my firm's name on the {last invoice|bill}
        """),
        matter=lines("""
            {the|my} {invoice|receipt|bill}
            {the paperwork|invoices}
            the {bill|bill for [month]}
        """),
        notes=lines("""
            {Please find|You will find} {the invoice|your receipt|invoice BC-2025-117} {attached|below}.
            {Your invoice|The invoice} {for [order]|over [amount]} {is in your account|was sent on [date]}.
            {We have|Our accounts have} {corrected|reissued} {the invoice|your bill}.
            {Invoices|Receipts} {can be downloaded|are kept} {in your account|for ten years}.
        """),
    ),
    "setup_help": Request(
        count=245,
        fits="unpacked unpacked unpacked faulty gift",
        near="repair replacement replacement refund product_question",
        do=lines("""
            {explain|tell me} how {I|to} {connect|set up|start|program} {it|the [device]}
            {walk|talk|guide} me through {the setup|the first start|pairing}
            {send|mail} me {the manual|the instructions|the steps}{ for the [device]|}
            {tell me|say} which {button|menu|setting} {I need|starts it|resets it}
            {help me|give me a hand} {with the setup|to get it started|to connect the [device]}
            {show|tell} me how {the timer|the app|the lid} {works|is set|goes on}
        """),
        want=lines("""
            {help|some help|a hint} {with the setup|to set it up|with the settings|with the app}
            {the manual|the instructions|a guide}{ for the [device]| in English|}
            {the steps|a few steps} to {connect it|reset it|get it going}
            {to know|to understand} {how to start it|how it connects|which button to press}
            {an explanation|advice} {of the lights|on how to use it|on the first start}
        """),
        say=lines("""
            how do I {connect|pair|reset|start|clean|descale|set} {it|the [device]}{ to my phone| the first time|}?
            {what|which button} do I {press|hold down} {first|to start it|to pair it|to reset it}?
            what am I doing wrong{ with it|}?
            {what does|what is} the {red|blinking|green} light {mean|telling me|for}?
            {which way|how} does the {filter|lid|battery|blade} {go in|fit on|come off}?
            {do I need|must I use} {the app|wifi|an account} {to start it|to use the [device]}?
            {is there|do you have} {a trick|a video|a page} that {shows the first steps|explains the buttons}?
            {the booklet|the manual} {is missing|is in Italian|stops at step three}, how {does it go on|do I use it}?
            it {asks for|wants} {a code|a pin|my network}, what do I {enter|type} there?
            {how much water|which setting|what temperature} {is right|do I choose} {for the first time|for it}?
        """),
        done=lines("""
            {explained|showed me} {the timer|the setup|the app} {on the phone|[ago]|once}
            {sent|mailed} me {the manual|the steps|a video} {[ago]|on [day]}
            {helped|talked} me {with the setup|through the menu} of {another|the first} one
        """),
        matter=lines("""
            {the|a} {setup|manual}
            {the instructions|how to use it}
            {setting it up|the settings|the app}
        """),
        notes=lines("""
            {Please|First} {hold the button|press both keys|hold reset} for {five|ten} seconds{, then open the app|}.
            {The manual|A guide|The instructions} {is attached|can be found on our help page}.
            {To set it up|To connect it}, {open the app|switch on wifi|follow the steps below}.
            {Have you tried|Please try} {to reset it|another socket|the steps in the manual}{?|}
        """),
    ),
    "product_question": Request(
        count=200,
        fits="shopping shopping shopping gift faulty",
        near="delivery_status setup_help replacement invoice refund",
        do=lines("""
            {tell me|let me know} {whether|if} the [thing] {is dishwasher safe|fits a small kitchen|comes in black}
            {recommend|suggest} {a [thing]|one of your [device]s} {for two people|for a small balcony|for a beginner}
            {advise me|tell me} which {[thing]|one} {to buy|suits a cafe|is quieter}
            {say|tell me} when {the [thing]|it} is {back in stock|on sale again|to be had again}
            {compare|tell me the difference between} {the two models|the small and the large one}
        """),
        want=lines("""
            {advice|some advice} {before I buy|on which one to buy|on the right size}
            {to know|to hear} {whether the [thing] is in stock|if it comes in red|what it weighs}
            {a recommendation|your opinion} {for a first [device]|between two models|}
            {the measurements|the weight|the power} of the [thing] {before I order|}
        """),
        say=lines("""
            {is the [thing]|are the [thing]s} {available|in stock|on sale} {in [month]|again soon|in green}?
            {does|will} the [thing] {fit|go on|suit} {a 40 cm shelf|a narrow worktop|a camper van|a small kitchen}?
            {which|what} {[thing]|model} {do you recommend|would you take} {for four people|for a gift|for a van}?
            {how loud|how heavy|how big} is the [thing]?
            what is the difference between {the two|the old and the new one|this and the premium one}?
            {do you|will you} {sell|carry|stock} {a larger [thing]|spare jars|one without plastic}?
            {is it|is the [thing]} made of {steel|glass|plastic}, and {where|by whom}?
            {can|could} one [thing] {serve|do for} {six people|a small office}, {before I buy two|what do you think}?
            is it {worth paying more|sensible to wait|better to take} for the {new model|bigger one}?
        """),
        done=lines("""
            {recommended|suggested} {the small one|this model|another model} {[ago]|on the phone}
            {told me|wrote} {it was in stock|it fits|it comes in black} [ago]
        """),
        matter=lines("""
            {your advice|which one to buy}
            {another model|the other model}
            {what is in stock|stock}
        """),
        notes=lines("""
            {The [thing]|It} {is in stock again|comes in three colours|is sold out until [month]}.
            {We recommend|For two people we suggest} {the small model|the larger one|the [thing]}.
            {You may also like|New in our shop}: {the [thing]|our [device]}.
        """),
    ),
    "account_access": Request(
        count=190,
        fits="login login login moved charged plan",
        near="address_change address_change invoice cancellation privacy_request privacy_request",
        do=lines("""
            {unlock|reopen|unblock} my {account|login|profile}
            {reset|renew} {my password|the password|my login}
            {send|mail} me {a new|another|a working} {password|login link|code}
            {let me|get me} {back in|into my account|in again}
            {change|move} my login to {my new mail|another e-mail|[email]}
            {switch off|remove} the {code by text|second step|old phone} {from my login|so that I can sign in}
        """),
        want=lines("""
            {access|my access} {to my account|back}
            {a new|another} {password|login link|code}
            {to get|to be let} {into my account|back in}
            {my account|the login|my profile} {unlocked|working again|unblocked}
            to {sign in|log in} {again|with my new mail|}
        """),
        say=lines("""
            {how|why} {can't I|do I not} {sign in|log in|get in}{ any more|}?
            {the page|your site} {rejects|refuses} {my password|me}, {how do I get in|what now}?
            {the code|the mail with the link} {never comes|goes to my old number|is always expired}
            {I'm|I am} {locked out|shut out}{ since [day]|}{, after three tries|}{, please help|}
            {I forgot|I lost} my {password|login}{ and the mail address too|}
            {my login|signing in} {fails|stopped working|ends in an error}, {what can I do|can you see why}?
            how do I {choose a new password|get a fresh link|sign in without the old phone}?
            {each|every} time I {sign in|log in} {it throws me out|the screen stays white|it says "wrong password"}
        """),
        done=lines("""
            {reset|renewed} my password {[ago]|in [month]|twice}
            {unlocked|reopened} {my account|the account} {[ago]|on [day]}
            {sent|mailed} me {a login link|a code} {[ago]|on [day]}
        """),
        matter=lines("""
            {the|my} {password|login}
            {signing in|logging in}
            {access to the account|the blocked account}
        """),
        notes=lines("""
            {Your password|Your login} {has been reset|was changed}{ on [date]|}.
            {Use|Please use} {this link|the code below} to {sign in|choose a new password}.
            {Your account|The account} {is unlocked|was blocked after three tries|is open again}.
        """),
    ),
    "privacy_request": Request(
        count=75,
        fits="mailing mailing mailing login plan moved",
        near="account_access account_access cancellation cancellation address_change refund",
        do=lines("""
            {delete|erase|remove} {all my data|everything you hold on me|my personal data}
            {send|give} me {a copy|a list} of {the data you hold on me|all you store about me}
            {stop|cease} {sharing|selling|using} my {data|address} {for advertising|with partners}
            {tell me|let me know} {what you store about me|who got my data}
            {forget|wipe} {me|my name and history} completely
        """),
        want=lines("""
            {my data|all my personal data|my history} {deleted|erased|removed}
            {a copy|a list} of {my data|everything stored about me}
            {to know|to see} {what you keep about me|who has my address}
            {no more|an end to the} {advertising|use of my data} {in my name|with my details}
        """),
        say=lines("""
            {what|which details} do you {store|keep|know} about me, {and since when|and who gets it}?
            {under|by} the {GDPR|data protection law} I {ask for|demand} {my data|erasure|access to my data}
            {how|where} did you get my {number|address|mail}, and who {gave it to you|else has it}?
            I {withdraw|take back} my consent to {the use of my data|advertising|any tracking}
            {nothing with my name|no data of mine} should {stay|remain} in your system
        """),
        done=lines("""
            {deleted|erased} {my husband's data|an old profile} {[ago]|in [month]}
            sent me {the list of my data|a copy of my data} [ago]
        """),
        matter=lines("""
            {data protection|my data}
            {deleting|erasing} my data
        """),
        notes=lines("""
            {Your data|Your personal data} {has been deleted|is kept for two years|was exported on [date]}.
            {You may|You can} {ask for a copy|object to the use} of your data{ at any time|}.
        """),
    ),
}

# What happened; none of these sentences asks for anything.
SITUATIONS: dict[str, tuple[str, ...]] = {
    "faulty": lines("""
        {my|the} [device] {gave up|stopped|went dead} {[ago]|on [day]|after [span]}
        the [device] {leaks|smells burnt|hums and does nothing|trips the fuse} {since [day]|every morning|now}
        {after|since} [span] the [device] {only blinks|won't heat|turns itself off|makes a grinding noise}
        the {lid|switch|display|hinge} of {my|the} [device] {broke off|is loose|stays dark}{ since [day]|}
        I {bought|ordered} the [device] [ago] and {it is already failing|now it's dead|it worked for [span]}
        {first it was slow|it began with a smell}, {now the [device] does nothing|then the [device] stopped}
        [device], {[span]|two years} old, {no longer heats|won't charge|lost its power}
        {your|the} [device] {has been acting up|misbehaves} {since [month]|again|more each week}
        the battery of the [device] {lasts ten minutes|is flat by noon}
        {yesterday|on [day]} the [device] {went up in smoke|fell silent|showed an error and died}
        error {E4|E7|12} {shows up|appears} {whenever I start the [device]|on my [device] since [day]}
    """),
    "damaged": lines("""
        the [thing] {arrived|came} {cracked|in pieces|with a dent|scratched all over} {on [day]|today|}
        {I opened the box|we unpacked it} and the [thing] {was broken|had a crack|was in shards}
        {the courier|the driver} {dropped|crushed} the {box|parcel}, {the [thing] is broken|poor [thing]}
        {one corner|one side} of the [thing] {is smashed|was broken off|has a chip}
        the parcel {was soaked|looked like a football|was torn open}, the [thing] {too|did not survive}
        {half|part} of [order] {is broken|came damaged}
        {photo attached|see the picture}: the [thing] {as it came|out of the box|with a crack}
    """),
    "late": lines("""
        I {ordered|bought|paid for} {a [thing]|[order]} [ago] {and nothing has come|}
        [order] {was due|should have been here|was announced} {on [day]|by [date]}
        {still no|no} [thing] {here|at my door|after [span]}
        {the driver|the courier} {never rang|marked it delivered|left no card}{ on [day]|}
        the {[plan]|box} for [month] {is late|hasn't come|is missing}
        {it has been|it's} [span] since {I ordered|your shipping mail|the order}
        the parcel {has been in [city]|sits at a depot|is "in transit"} {since [day]|for [span]}
        {I stayed home|we waited} all [day] for {the [thing]|[order]}
        tracking for [order] {ends in [city]|shows nothing new|stopped on [day]}
    """),
    "wrong": lines("""
        {I ordered|we ordered} a [thing] and {got|found} a {[thing]|[device]} {in the box|instead|}
        {the colour|the size|the model} of the [thing] is {wrong|not what I chose|another one}
        {there is|there was} {a [device]|someone else's [thing]} in my parcel {in place of the [thing]|}
        {you sent|I got} {two [thing]s|one [thing]}, {I ordered one|I paid for two}
        the [thing] is {smaller than it looked|not the one in the picture|too big for us}
        [order] came {with the wrong label|with a stranger's name|with one item missing}
    """),
    "moved": lines("""
        {we|I} {moved|are moving|have moved} to [city] {on [date]|in [month]|last week}
        {our|my} old flat {is sold|is empty|was given up} {since [month]|}
        {from [date]|starting in [month]} {we live|I work|I'm living} in [city]
        {the firm|our office} {moves|moved} to [street] {in [month]|}
        {new job, new town|big move ahead}: [city] {since [day]|from [month]}
        I {got married|changed my name|moved in with my partner} in [month]
    """),
    "charged": lines("""
        {my card|my bank|the statement} shows {[amount]|a payment of [amount]} {twice|from [date]|I don't know}
        {you|your shop} {took|booked|charged} [amount] {on [date]|again|in [month]}
        I {paid|was billed} [amount] for {the [thing]|[order]|the [plan]}{, the page said [amount]|}
        there is {a booking|a charge} of [amount] {on my card|in my account} {for [order]|since [day]|}
        {the voucher|code [code]} {wasn't taken off|did not count}, so I paid [amount]
        {two|three} payments for {[order]|the [plan]} {left my account|are on my statement}
    """),
    "plan": lines("""
        I {have had|took|started} the [plan] {in [month]|for [span]|since [month]}
        {the [plan]|my [plan]} {costs [amount] now|came twice|went up in price}
        {three|four} boxes {are piling up|stand unopened} {here|in the hall}
        {my [plan]|the [plan]} {renewed|was renewed} {on [date]|by itself|without a mail}
        {a friend gave me|I was given} the [plan] {for my birthday|last year}
        the {last|[month]} box of the [plan] {was lovely|was half empty|had the wrong beans}
        {I'm away|we travel} from [date] {for [span]|until [month]}
    """),
    "gift": lines("""
        the [thing] {was|is} {a present|a gift} for {my mother|my brother|a friend}
        {my aunt|my colleague} {got|received} {the [thing]|a [thing]} {from us|for her birthday}
        {her birthday|the party|the wedding} is on [day]
        I {bought|ordered} {a [thing]|two [thing]s} {as presents|for my parents|for the team}
        {he already has|she owns} a [thing]
        my {sister|father} {gave me|bought me} {the [thing]|a [thing]} [ago]
    """),
    "unpacked": lines("""
        {my|the} [device] {arrived|came} {today|on [day]}{, it looks great|, finally|}
        I {have|just have} the [device] {in front of me|on the table|out of the box}
        {new here|first time}, {a [device] came today|I own a [device] since [day]}
        the [device] {blinks red|beeps twice|shows three dots|asks for a code} {and waits|after I plug it in|}
        {my phone|the app} {does not find|can't see|loses} the [device]
        {there's no|I found no} {booklet|paper} in the box{ of the [device]|}
        my {mother|grandfather} {got|has} a [device] and {can't cope with the menu|is afraid of the buttons}
    """),
    "login": lines("""
        {I changed|I have a new} {phone|mail address|number} {since [day]|}
        {your site|the app|the shop} {threw me out|asked me to sign in again} {on [day]|after the update|}
        I {made|opened} an account {in [month]|[ago]|with my work mail}
        {somebody|a stranger} {tried to sign in|used my account} {on [day]|from [city]|}
        my account {runs on|is under} {my old mail|my old name|[email]}
        I {shop|order} {with you|here} {twice a year|for my parents too|only now and then}
    """),
    "mailing": lines("""
        I {get|keep getting} {your newsletter|mails from you|calls from your partners} {every day|since [month]|}
        {a letter|an advert} {came|was sent} {to my dead father|to an address you should not have}
        {I read about|there was news of} {a leak|your new privacy policy} {on [day]|}
        {I haven't bought|I bought nothing} {here|from you} {for years|since 2019}
        I {signed up|gave my number} {once|for a raffle|in your shop in [city]} {[ago]|}
    """),
    "shopping": lines("""
        {I'm looking|we are looking|I look} {for a [thing]|at the [thing]|for a present}
        {our kitchen|my balcony|the office} is {small|tiny|2 metres wide}
        {I saw|a friend showed me} {your [thing]|the [device]} {online|at a fair|in [month]}
        {we are|we're} {six people|two|a small cafe}{ and drink a lot|}
        the [thing] {looks lovely|is in my basket|has two sizes}
        {my old|our old} [device] {is from another firm|was too loud|served us ten years}
    """),
    "ordered": lines("""
        {I|we} {ordered|bought} {a [thing]|two [thing]s|[order]} {on [day]|yesterday|an hour ago|on [date]}
        {yesterday|on [day]|last night} I {placed|sent} {an order|[order]} {for the office|on my phone|}
        {[order]|the order} {is paid|was confirmed} {since [day]|an hour ago|}
        {the [thing]|[order]} {was for|is for} {the firm|my office|our kitchen}
        I {clicked|ordered} {too fast|in a hurry} {on [day]|last night|}
    """),
}

# Sentences around a request. @ is its action (do), ~ another category's.
ASK_DO = lines("""
    please @
    {could|can|would} you {please |}@?
    {I'd like|I want|I need} you to @
    {what I want is|my wish is|all I ask is} for you to @
    {it would be great|I'd be glad|it would help} if you could @
    {be so kind and|kindly|just} @
    {so|this time|now}, please, @
    I'm asking you {again |}to @
    {is it possible to|would it be possible to|are you able to} @?
    my {question|request}: {can you|could you} @?
""")
ASK_WANT = lines("""
    {I'd like|I want|I need|I would like} @
    {all I|what I} {want|need} is @
    {can I|could I|may I} {get|have} @?
    I'm {writing|asking} {for|because I need} @
    {please arrange for|please see to it that I get} @
    {how do I get|where do I get} @?
    {the only thing I want|the one thing that helps me} is @
    {I hope for|I count on} @
""")
# One request in place of another: ~ is excluded.
CONTRAST_DO = lines("""
    please don't ~, {just |}@
    {you don't have to|there's no need to|you need not} ~, {but please|just|only} @
    {rather than|instead of offering to} ~, {please |could you }@
    {please |I'd like you to }@ {and|but} {don't|do not} ~
    {I never asked you to|nobody asked you to} ~, {I asked you to|my wish was to} @
    {not|nobody needs you to} ~ - @, please
    don't ~{ again| this time|}: {please |what I need is that you }@
""")
CONTRAST_WANT = lines("""
    I {don't want|don't need|am not after} ~, {I want|I need|but} @
    I {asked for|want|need} @, {not|and not|by no means} ~
    {not|no, not} ~{ again|}, {I need|but} @
    {instead of|in place of} ~ {I'd prefer|I would like|I'd rather have} @
    {your colleague|the bot|[agent]} {understood|wrote down|offered} ~, {I need|what I asked for was} @
    {if I wanted|had I wanted} ~, I'd have {said so|asked}{;|:} {I want|I need} @
""")
# Another request that is only named. Here @ is its action.
EXCLUDE_DO = lines("""
    you {don't have to|need not|don't need to} @
    {I'm not asking you|nobody asked you|I don't expect you} to @
    {please don't|do not} @{ again|}{, that's not the point|, that would not help|}
    {no need|there's no need} to @
    I {don't want|wouldn't want} you to @
    {it's no use|it won't help} if you @
""")
OFFER_DO = lines("""
    {your colleague|[agent]|a lady on the phone|your chat bot} {offered|wanted|proposed} to @{, I said no|, no thanks|}
    {the bot|the hotline|your form} {keeps offering|only offers} to @
    {the first answer|your last mail} {was that you would|said you could} @{, but I didn't ask for that|}
""")
EXCLUDE_WANT = lines("""
    I {don't want|don't need|am not after|never asked for} @
    @ {is not what I'm after|would be no help|is not what I need}
    {this is no request for|I'm not writing for|it's not about} @
    {keep|you can keep|forget about} @
    {my wife|my brother|my colleague} {wanted|asked for} @, {I don't|not me|I see it differently}
    {a friend|my neighbour} {got|was given} @ {last year|for the same thing}
""")
DONE = lines("""
    you {already |}@{, thanks for that|, that was fine|}
    {last time|once before} you @
    {it's good|nice|I'm glad} that you @
    {although|even though} you @, {I have to write again|here I am again}
""")
MATTER = lines("""
    @ {is settled|worked out|was quick|is done}{, thank you|, thanks|}
    this is not about @
    {my last mail|my first ticket} was about @, {this one isn't|that's closed}
    @ {is another story|can wait|is not my problem}
    {forget|never mind} @
    I {chose|clicked} "@" {in the form|in your menu}, {nothing else fitted|there was no better topic}
    {sorted|all fine} with @{ by now|}
    {as for|about} @: {all good|no complaints|that's done}
""")
QUOTES = lines("""
    {you wrote|your mail says|your answer was}: "@"
    {on [day]|on [date]|[ago]} {you wrote|I got} "@"{, but that was another order|, that's not what I asked|}
    {all I got was|the bot says|your app says} "@"
""")
THREADS = lines("""
    > @
    > On [date] Brindlecove wrote:\\n> @
    > Hello [first],\\n> @
    > @\\n> Your Brindlecove team
    -----Original message-----\\n@
""")

# --- German
# ----------------------------------------------------------------------------------------------

GERMAN: dict[str, GermanRequest] = {
    "refund": GermanRequest(
        do=lines("""
            {mir das Geld|den Betrag|die [betrag]} {zurückzahlen|erstatten|zurück überweisen}
            {den Kaufpreis|den vollen Preis} {erstatten|zurückzahlen}
        """),
        want=lines("""
            {eine Erstattung|eine Rückzahlung|mein Geld|den Kaufpreis zurück}
        """),
        say=lines("""
            wann {kommt mein Geld zurück|ist das Geld wieder auf meinem Konto}?
            die Rücksendung ist {seit Tagen|seit [tag]} bei Ihnen, wo bleibt {mein Geld|der Betrag}?
            ich will nur {mein Geld|den Kaufpreis} wiederhaben
        """),
        notes=lines("""
            Wir haben Ihnen [betrag] {erstattet|zurück überwiesen}.
            Gern {erstatten wir|zahlen wir} Ihnen den {Betrag|Kaufpreis}{ zurück|}.
        """),
    ),
    "replacement": GermanRequest(
        do=lines("""
            {mir|uns} {ein neues Exemplar|Ersatz|ein anderes Exemplar} {schicken|zusenden}
            [ding] {umtauschen|austauschen|gegen neue Ware tauschen}
        """),
        want=lines("""
            {einen Umtausch|Ersatz|ein neues Exemplar|einwandfreien Ersatz}
            das {richtige|bestellte} Modell
        """),
        say=lines("""
            wann bekomme ich {Ersatz|ein neues Exemplar}?
            {kann|könnte} ich [ding] {umtauschen|gegen ein heiles Exemplar tauschen}?
            ich möchte [ding] ja behalten, nur eben heil und neu
        """),
        notes=lines("""
            {Ihr Ersatz|Das neue Exemplar} {ist unterwegs|wurde gepackt}.
            Wir {tauschen|ersetzen} Ihnen den Artikel{ gern um| kostenlos|}.
        """),
    ),
    "repair": GermanRequest(
        do=lines("""
            [ding] {reparieren|wieder in Gang bringen|in der Werkstatt reparieren}
            {das Gerät|den Schalter} {richten|reparieren}
        """),
        want=lines("""
            {eine Reparatur|eine Reparatur auf Garantie|einen Reparaturtermin}
        """),
        say=lines("""
            {kann|könnte} Ihre Werkstatt [ding] {reparieren|richten}?
            {was kostet|wie lange dauert} {die|eine} Reparatur?
            wohin schicke ich [ding] zur Reparatur?
        """),
        notes=lines("""
            {Ihr Gerät|Die Reparatur} ist {fertig|in Arbeit}.
            Unsere Werkstatt {repariert|prüft} das Gerät{ kostenlos|}.
        """),
    ),
    "delivery_status": GermanRequest(
        do=lines("""
            {mir sagen|nachsehen|beim Paketdienst fragen}, wo {mein Paket|[nr]|die Sendung} {ist|bleibt}
            {die Sendung|das Paket} {suchen lassen|verfolgen}
        """),
        want=lines("""
            {eine Sendungsnummer|einen Liefertermin|Auskunft über die Lieferung}
        """),
        say=lines("""
            wo {bleibt|ist} {mein Paket|die Bestellung|[ding]}?
            wann {kommt|ist} {[ding]|das Paket|die Lieferung} {endlich an|bei mir an}?
            {ist das Paket|ist [nr]} {verloren gegangen|überhaupt schon unterwegs}?
        """),
        notes=lines("""
            {Ihr Paket|Die Sendung} {ist unterwegs|hat unser Lager verlassen}.
            {Die Lieferung|Ihr Paket} {kommt|wird} am [tag]{ zugestellt|}.
        """),
    ),
    "cancellation": GermanRequest(
        do=lines("""
            {die Bestellung|[nr]} {stornieren|rückgängig machen}
            {mein Abo|das Abo|den Vertrag} {kündigen|beenden|zum Monatsende beenden}
        """),
        want=lines("""
            {eine Stornierung|die Kündigung meines Abos|keine weiteren Pakete}
        """),
        say=lines("""
            {hiermit kündige ich|ich kündige} {das Abo|mein Abo}{ zum nächsten Monat|}
            wie komme ich aus dem Abo {heraus|wieder raus}?
            {kann|lässt sich} die Bestellung noch {gestoppt werden|stoppen}? ich brauche sie nicht mehr
        """),
        notes=lines("""
            {Ihre Bestellung|Ihr Abo} {wurde storniert|ist beendet}.
            {Die Kündigung|Das Abo} {ist jederzeit möglich|endet mit dem Monat}.
        """),
    ),
    "address_change": GermanRequest(
        do=lines("""
            {die Adresse|meine Anschrift|die Lieferadresse} {ändern|berichtigen}{, neu ist [street]|}
            {das Paket|alles|[nr]} {an [street]|nach [city]|ins Büro} {schicken|liefern}
        """),
        want=lines("""
            {eine andere Lieferadresse|die neue Anschrift im Konto|[street] als Adresse}
        """),
        say=lines("""
            {meine|unsere} neue {Adresse|Anschrift} {ist|lautet} [street], [city]
            kann das Paket an {meine Nachbarin|mein Büro} in [city] gehen?
            die Hausnummer stimmt nicht, richtig ist [street]
        """),
        notes=lines("""
            {Ihre Adresse|Die Lieferadresse} wurde {geändert|übernommen}.
        """),
    ),
    "invoice": GermanRequest(
        do=lines("""
            {mir|uns} {die Rechnung|eine Kopie der Rechnung|den Beleg} {schicken|mailen}
            {die Rechnung|den Beleg} {auf die Firma ausstellen|mit Steuernummer ausstellen|berichtigen}
        """),
        want=lines("""
            {die Rechnung|eine Rechnung mit Steuernummer|einen Kaufbeleg|eine Kopie der Rechnung}
        """),
        say=lines("""
            {wo finde ich|wo ist} die Rechnung{ für [nr]|}?
            {meine Buchhaltung|das Finanzamt|die Versicherung} {braucht|verlangt} {den Beleg|die Rechnung}
            auf der Rechnung steht der falsche Name, das {muss geändert werden|bitte ändern}
        """),
        notes=lines("""
            {Die Rechnung|Ihre Rechnung} {finden Sie im Anhang|liegt im Konto}.
        """),
    ),
    "setup_help": GermanRequest(
        do=lines("""
            {mir erklären|kurz erklären}, wie ich [ding] {einrichte|verbinde|starte}
            {die Anleitung|eine Anleitung} {schicken|zusenden}
        """),
        want=lines("""
            {Hilfe beim Einrichten|eine Anleitung|die Bedienungsanleitung}
        """),
        say=lines("""
            wie {verbinde|starte|entkalke|stelle} ich [ding]{ richtig ein|}?
            {welche Taste|was} {muss ich drücken|drücke ich zuerst}?
            was {bedeutet|heißt} das {rote|blinkende} Licht?
        """),
        notes=lines("""
            Bitte {halten Sie die Taste|drücken Sie beide Tasten} {fünf|zehn} Sekunden.
        """),
    ),
    "product_question": GermanRequest(
        do=lines("""
            {mir sagen|mich beraten}, {welches Modell|welche Größe} {passt|für zwei Personen reicht}
        """),
        want=lines("""
            {eine Empfehlung|Beratung vor dem Kauf|Auskunft zu den Maßen}
        """),
        say=lines("""
            {ist|gibt es} [ding] {auch in Schwarz|wieder auf Lager|auch größer}?
            {passt|eignet sich} [ding] {für Induktion|für vier Personen|in ein kleines Regal}?
            wie {laut|schwer|groß} ist [ding]?
        """),
        notes=lines("""
            {Der Artikel|Das Modell} ist {wieder lieferbar|ab [tag] auf Lager}.
        """),
    ),
    "account_access": GermanRequest(
        do=lines("""
            {mein Konto|den Zugang} {entsperren|freischalten}
            {mir ein neues Passwort|einen neuen Link} {schicken|zusenden}
        """),
        want=lines("""
            {ein neues Passwort|wieder Zugang zum Konto|einen neuen Anmeldelink}
        """),
        say=lines("""
            ich {komme nicht mehr ins Konto|kann mich nicht anmelden}{, was tun|}
            {mein Passwort|der Code} {wird nicht angenommen|kommt nie an}
        """),
        notes=lines("""
            Ihr {Passwort|Zugang} wurde {zurückgesetzt|freigeschaltet}.
        """),
    ),
    "privacy_request": GermanRequest(
        do=lines("""
            {alle meine Daten|meine Daten} {löschen|vollständig löschen}
        """),
        want=lines("""
            {eine Auskunft über meine Daten|die Löschung meiner Daten}
        """),
        say=lines("""
            {welche Daten|was} haben Sie über mich gespeichert?
        """),
        notes=lines("""
            Ihre Daten wurden {gelöscht|exportiert}.
        """),
    ),
}
GERMAN_SITUATIONS: dict[str, tuple[str, ...]] = {
    "faulty": lines("""
        [ding] {geht nicht mehr|ist kaputt|macht komische Geräusche} {seit [tag]|[vor]|}
        {nach einem Jahr|seit gestern} {heizt|läuft} [ding] nicht mehr
    """),
    "damaged": lines("""
        [ding] kam {zerbrochen|mit einem Sprung|zerkratzt} an
        das Paket war {nass|eingedrückt}, [ding] ist {kaputt|hin}
    """),
    "late": lines("""
        ich habe [ding] [vor] bestellt
        {[nr]|die Lieferung} sollte am [tag] da sein
    """),
    "wrong": lines("""
        im Paket lag {etwas anderes|die falsche Farbe}, bestellt war [ding]
        {die Größe|das Modell} stimmt nicht
    """),
    "moved": lines("""
        wir {sind nach [city] gezogen|ziehen nach [city] um}
        {seit [tag]|bald} wohne ich in [city]
    """),
    "charged": lines("""
        {mir wurden|am [tag] wurden} [betrag] {abgebucht|doppelt abgebucht}
        Sie haben {für [ding]|am [tag]} [betrag] {abgebucht|doppelt abgebucht}
    """),
    "plan": lines("""
        ich habe {Ihr Abo|die Kaffeebox} seit {einem Jahr|dem Sommer}
        {drei|vier} Pakete stehen hier ungeöffnet
    """),
    "gift": lines("""
        [ding] war ein Geschenk{ für meine Mutter|}
        die Feier ist am [tag]
    """),
    "unpacked": lines("""
        [ding] ist {heute|am [tag]} {angekommen|gekommen}{, sehr schön|}
        die App findet [ding] nicht
    """),
    "login": lines("""
        ich habe {ein neues Handy|eine neue Mailadresse}
        seit dem Update {fragt|meldet} Ihre Seite ständig etwas
    """),
    "mailing": lines("""
        ich bekomme {jeden Tag|ständig} Werbung von Ihnen
        ich habe seit Jahren nichts bei Ihnen gekauft
    """),
    "shopping": lines("""
        unsere Küche ist {klein|sehr klein}
        ich suche ein Geschenk und sah [ding]
    """),
    "ordered": lines("""
        {gestern|am [tag]} habe ich {[ding]|[nr]} bestellt
        die Bestellung war {für die Firma|für das Büro}
    """),
}
GERMAN_ASK_DO = lines("""
    bitte @
    {könnten|können|würden} Sie bitte @?
    {meine Bitte|mein Anliegen|meine Frage}: {können|könnten} Sie @?
    {Sie sollen|Sie sollten} {nur|einfach} @
""")
GERMAN_ASK_WANT = lines("""
    ich {brauche|möchte|hätte gern|will} @
    {kann|könnte} ich @ {bekommen|haben}?
    {mir geht es nur um|ich bitte um} @
""")
GERMAN_CONTRAST = lines("""
    ~ {brauche|möchte} ich nicht, {sondern|ich möchte} @
    ich {möchte|will|brauche} @ und nicht ~
    nicht ~, sondern @ {bitte|möchte ich}
    Ihre {Kollegin|Hotline} {notierte|verstand} ~, ich {möchte|wollte} @
""")
GERMAN_EXCLUDE = lines("""
    ~ {brauche|will|möchte} ich {nicht|diesmal nicht}
    ~ hat man mir schon {angeboten|am [tag] angeboten}
    {wer hat|habe ich} ~ verlangt? {ich nicht|nein|nie}
""")
GERMAN_OFFER = lines("""
    Ihre {Kollegin|Hotline} wollte ~{, das lehne ich ab|}
    der Chat bietet nur an: ~
""")
GERMAN_OPENINGS = lines("""
    {hallo|guten Tag|moin|guten Abend}
    {hallo zusammen|liebes Team|sehr geehrte Damen und Herren}
""")
GERMAN_CLOSINGS = lines("""
    {danke|vielen Dank|besten Dank}{, [first]|}
    {Gruß|viele Grüße|mit freundlichen Grüßen}, [name]
""")
