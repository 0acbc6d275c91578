"""Phrases for the order e-mails and for the reply drafts; same notation as in ``phrases_support.py``."""

from phrases_support import lines

# --- order e-mails: ``@`` stands for the items, ``#`` for the order number, ``~`` for the date ------------

INTENTS = ("new_order", "change_order", "cancel_order", "return_items", "change_address")

SUBJECTS: dict[str, tuple[str, ...]] = {
    "new_order": lines("""
        {order|new order|purchase request}
        {something for our kitchen|for the office|we need a few things}
    """),
    "change_order": lines("""
        {change to my order|small change|please amend}
        {about #|forgot something}
    """),
    "cancel_order": lines("""
        {cancel #|please cancel|changed my mind}
        {stop the order|order no longer needed}
    """),
    "return_items": lines("""
        {return|sending something back|return for #}
        {not for us|return request}
    """),
    "change_address": lines("""
        {other address for #|where to deliver|new address}
        {delivery place|we have moved}
    """),
}

REQUESTS: dict[str, tuple[str, ...]] = {
    "new_order": lines("""
        {please send us|we'd like to order|I want to buy} @.
        {could you put together|can I have} @ {for me|for our office}?
        {we need|our cafe needs} @, {billed to the usual account|pay on invoice}.
        {it's time to stock up|the shelf is empty}: @ {please|would do}.
        {as agreed on the phone|as discussed}, {I order|this is our order for} @.
        {my daughter is getting married and wishes for|for the new flat I'm after} @.
        {kindly note down|please book} @ {under my name|for us}.
    """),
    "change_order": lines("""
        {please add|could you add} @ to {my order|our order} #.
        # {is not complete|has a gap}, {I forgot|please also pack} @.
        {is it too late to put|can you still put} @ {into|in} {the box of #|order #}?
        {make it|please change it to} @ {in|for} #, {the rest stays as it is|nothing else changes}.
        {we counted wrong|we have more guests than thought}: # {should also hold|needs} @ {on top|as well}.
    """),
    "cancel_order": lines("""
        {please cancel|I'd like to cancel} # (@), {we found one in the attic|it is no longer needed}.
        {I ordered|we ordered} @ {by mistake|twice}, so please {drop|stop} #.
        {the party is off|the project got stopped}, {don't ship|no need to send} @ from #.
        {sorry|my apologies}, {I have to call off|please take back} order #: @.
        @ {under|in} # {can be struck|won't be needed}, {my sister had the same idea|budget is gone}.
    """),
    "return_items": lines("""
        {I'd like to return|I am sending back} @ from {order|} #.
        @ {came with|were part of} # {and don't suit us|but the size is wrong for us}, {please send a \
            label|how do I return this}?
        {please arrange a pickup for|we have to give back} @ (#), {unused|still sealed}.
        {from # I keep everything except|the following from # goes back}: @.
        {we took too many|far too much} in #, {please take back|going back to you}: @.
    """),
    "change_address": lines("""
        {please send|could you deliver} # to [street], [city] {instead|, not to the old place}.
        {we have moved|our shop has moved}: # {should go to|is to be delivered to} [street], [city].
        {wrong address on|I gave the wrong address for} #, {correct is|it should be} [street], [city].
        {nobody will be home|the office is closed}, so {redirect|reroute} # to [street], [city].
    """),
}

DATES: dict[str, tuple[str, ...]] = {
    "new_order": lines("""
        {it should be here by|we need it by|please deliver on} ~.
        {delivery on|arrival by} ~ {would be perfect|please}.
    """),
    "change_order": lines("""
        {everything should reach us by|please still deliver by} ~.
        {the delivery may move to|new delivery date:} ~.
    """),
    "cancel_order": lines("""
        {please confirm by|I need your confirmation by} ~.
    """),
    "return_items": lines("""
        {the parcel can be picked up on|your driver may come on} ~.
        {I will hand it to the courier on|pickup possible on} ~.
    """),
    "change_address": lines("""
        {the new address is valid from|we are there from} ~.
        {please deliver there on|arrival there by} ~.
    """),
}

CONTACTS = lines("""
    {questions to|please answer to|confirm to} ^.
    {you reach me at|you can write to|please write to} ^ {if anything is unclear|for the rest|any time}.
    {contact|e-mail}: ^
""")

INTROS = lines("""
    {I hope you are well|hope all is fine at your end}.
    {we have ordered from you since|I've been a customer since} {2018|2020|2022} and {were always happy|it \
        always went well}.
    {my name is|this is} [name], {I write for our small office|I run a guest house|we spoke last week} in \
        [city].
    {sorry to bother you again|sorry for writing so late in the evening}{, it won't take long|}.
    {your web form kept losing my text|I couldn't find the right form}, so {here comes an e-mail|I try it \
        this way}.
    {it has been a busy month here|we are preparing for the season} and {I nearly forgot to write|there is \
        much to arrange}.
    {a colleague told me|I was told on the phone} {to write to this address|that you handle this by e-mail}.
""")

ASIDES = lines("""
    {by the way|PS}: {our|my} [thing] from last {year|spring} {still works well|is in daily use}.
    {a [thing] is not needed this time|we don't need a [thing], the old one is fine}.
    {phone|call me}: [phone], {mornings only|not after six}.
    {no gift wrap|no leaflets} please.
    {please leave it with the neighbour|ring twice, the bell is weak}.
    {my customer number is|customer} [customer].
    {thanks for the quick help last time|you were very friendly on the phone}.
    {pay by card as always|invoice as always to the office}.
""")

GREETINGS = lines("""
    {hello|hi|dear} {Brindlecove|Brindlecove team|team}
    {good morning|good afternoon|hello}
    {dear sir or madam|to the order desk|hi all}
""")

SIGN_OFFS = lines("""
    {kind regards|best regards|best wishes|thanks|many thanks|cheers}
    {yours|greetings from [city]|thank you|until then}
""")

# --- reply drafts: what the house says and by when ----------------------------------------------------------

REPLIES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "late_delivery": (
        lines("""
            {I'm sorry|we're sorry} that your [about] {has kept you waiting|is not with you yet}.
            thank you for telling us; {a wait this long is not what we promise|you should have it by now}.
        """),
        lines("""
            {we have opened a trace with the courier|we now let the courier search for it} and {will write \
                to you|you will hear from us} within 2 working days.
        """),
        lines("""
            {if it isn't found|should it stay missing}, {a new parcel leaves|we send it again} on the third \
                working day, at no cost.
        """),
    ),
    "refund_request": (
        lines("""
            thank you for your message about {the money for|the refund of} your [about].
            {I understand|we understand} that you want {to be paid back|your money back} for your [about].
        """),
        lines("""
            {refunds go|we always refund} to the card or account you paid with, 5 working days after the \
                return reaches us.
        """),
        lines("""
            {is it still with you|do you still have it}? {a free return label|the free label} is in your \
                account{, under Orders|}.
            {we'll e-mail you|you get an e-mail} {the moment|as soon as} the payment is on its way.
        """),
    ),
    "damaged_item": (
        lines("""
            {I'm sorry|we're sorry} that your [about] {reached you in this state|did not survive the trip}.
            that is {not how|no way in which} your [about] should arrive, {and I'm sorry|our apologies}.
        """),
        lines("""
            {please send us one photo|one photo is all we need}; {a replacement|a new one} then leaves our \
                warehouse within 2 working days.
        """),
        lines("""
            {you need not return the damaged one|no need to send the damaged one back}{; please recycle it|}.
        """),
    ),
    "wrong_item": (
        lines("""
            {I'm sorry about|our apologies for} the mix-up {with your parcel|in our packing room}.
            thank you for {letting us know|the clear description}; {we packed that wrongly|the mistake is \
                ours}.
        """),
        lines("""
            {what you ordered|the right item} {will leave|leaves} our warehouse within 2 working days{, at \
                no cost|}.
        """),
        lines("""
            {if something in the parcel isn't yours|should you hold a wrong item}, {a free return label|a \
                free label} comes with it, valid for 14 days.
        """),
    ),
    "cancel_subscription": (
        lines("""
            {thank you for having been with us|it's a pity to see you go, and we understand}.
            {we have noted|I have noted} {that your subscription is to end|the end of your subscription}.
        """),
        lines("""
            {it ends|your subscription ends} on the last day of this month, {and nothing is charged after \
                that|with no further payments}.
        """),
        lines("""
            {a written confirmation follows|you get a confirmation by e-mail} within 1 working day; {a box \
                already packed still arrives|you can come back at any time}.
        """),
    ),
    "password_reset": (
        lines("""
            {sorry that|I'm sorry that} {you cannot get in|your account is giving you trouble}.
            thank you for writing; {we'll get you back in|this is quickly put right}.
        """),
        lines("""
            {we have just sent|I have sent} a new sign-in link to the {mailbox|e-mail address} we have on \
                file; it is valid for 30 minutes.
        """),
        lines("""
            {if nothing comes|should it not work}, {call us|ring us} on 555-0100 between 9 and 17, {and \
                have an order number ready|with an order number at hand}.
        """),
    ),
    "faulty_device": (
        lines("""
            {I'm sorry that|what a pity that} your [about] {is letting you down|gives you trouble}.
            thank you for {the description|telling us what happened}; your [about] should {last longer than \
                that|not do this}.
        """),
        lines("""
            {every device has a 3 year guarantee|our guarantee runs for 3 years}, so {the repair is \
                free|you pay nothing for the repair}.
        """),
        lines("""
            {please unplug it and use|pack it up with} the free label in your account; {it is back with \
                you|you have it back} within 7 working days.
        """),
    ),
    "billing_error": (
        lines("""
            thank you for {checking so carefully|telling us}, {and sorry for the worry|and I'm sorry about \
                this}.
            {I understand your concern|we're sorry} about {this payment|that amount}.
        """),
        lines("""
            {our accounts team|the accounts team} {checks it|looks into it} within 2 working days {and \
                writes to you|and sends you the result}.
        """),
        lines("""
            {whatever was taken wrongly|any wrong amount} is back {on your card|with you} 5 working days \
                later.
        """),
    ),
    "address_change": (
        lines("""
            thank you for {telling us in time|letting us know}.
            {it's good that you wrote|thanks for the note}; {parcels should go where you are|we want it to \
                reach you}.
        """),
        lines("""
            {we change|I will change} the delivery address today, {just reply if part of it is missing|and \
                if we need more we'll ask}; every parcel packed from tomorrow noon {goes there|follows it}.
        """),
        lines("""
            {a confirmation follows|you get a confirmation} by e-mail within 1 working day; {please check \
                the house number|please check the spelling}.
        """),
    ),
    "invoice_copy": (
        lines("""
            thank you for your message; {of course you get the document|bookkeeping comes first}.
            {certainly|gladly}: {you shall have it|we'll see to the paperwork}.
        """),
        lines("""
            {our accounts team|the accounts team} {e-mails you|sends} the invoice as a PDF within 1 working \
                day{, with the tax listed|}.
        """),
        lines("""
            {older invoices|all invoices of the past 10 years} {can be found|are} in your account under \
                Documents{, ready to print|}.
        """),
    ),
}
REPLY_COUNT_PER_CATEGORY = 32
REPLY_END = "Warm regards, the Brindlecove team"
REPLY_ABOUT = {
    "late_delivery": "parcel",
    "refund_request": "order",
    "damaged_item": "order",
    "faulty_device": "device",
}
