"""Phrases for the order e-mails and for the reply drafts; same
notation as in ``phrases_support.py``.
"""

from phrases_support import lines

# --- order e-mails: ``@`` stands for the items, ``#`` for the order number, ``~`` for the date
# ------------

INTENTS = ("new_order", "change_order", "cancel_order", "return_items", "change_address")

SUBJECTS: dict[str, tuple[str, ...]] = {
    "new_order": lines("""
        {order|new order|purchase request|an order from [city]}
        {something for our kitchen|for the office|we need a few things|shopping list}
        {restocking|goods for {spring|autumn|the weekend}|order, please confirm}
    """),
    "change_order": lines("""
        {change to my order|small change|please amend|one more thing for #}
        {about #|forgot something|# again|an addition}
    """),
    "cancel_order": lines("""
        {cancel #|please cancel|changed my mind|# can go}
        {stop the order|order no longer needed|no delivery please|withdrawal}
    """),
    "return_items": lines("""
        {return|sending something back|return for #|goods coming back}
        {not for us|return request|back to you: #|how to return}
    """),
    "change_address": lines("""
        {other address for #|where to deliver|new address|# to another place}
        {delivery place|we have moved|change of address|please redirect}
    """),
}

REQUESTS: dict[str, tuple[str, ...]] = {
    "new_order": lines("""
        {please send us|we'd like to order|I want to buy|put me down for|I'd take} @{.|, thanks.| if you have them.}
        {could you put together|can I have|would you pack|may I ask for} @ {for me|for our office|for the canteen|}?
        {we need|our cafe needs|the guest house needs|my parents need} @, {billed to the usual account|pay on \
            invoice|card on file|and a proper receipt}.
        {it's time to stock up|the shelf is empty|stocks run low|we ran out}: @ {please|would do|is what we lack}.
        {as agreed on the phone|as discussed|following your offer|like last year}, {I order|this is our order \
            for|we take} @.
        {my daughter is getting married and wishes for|for the new flat I'm after|as a birthday present I need|our \
            reading circle asked me for} @.
        {kindly note down|please book|reserve and ship|please invoice} @ {under my name|for us|on the company|as \
            one parcel}.
        {there is a fair in [city] and we want to show|the new kitchen opens and still lacks|half the team asked \
            for} @{, so this is an order|; please ship}.
        {what I would like from your catalogue|wanted|on my list}: @.
        {a friend in [city] praised your goods|I saw your stall in [city]}, {so send me|which is why I order} @.
        @ {please|, and quickly if you can|, nothing else this time}.
        {new order from our side|next order}: @.
        {you may ship|go ahead and send|get ready for us} @ {whenever it suits|in one go|with the next van}.
    """),
    "change_order": lines("""
        {please add|could you add|may I add|we'd add} @ to {my order|our order|what's on its way, that is} #{.|, if \
            it's still open.|; the invoice may grow.}
        # {is not complete|has a gap|is missing something}, {I forgot|please also pack|it lacks} @.
        {is it too late to put|can you still put|would there be room for} @ {into|in|inside} {the box of #|order \
            #|#}?
        {make it|please change it to|let it be} @ {in|for|under} #, {the rest stays as it is|nothing else \
            changes|leave the other lines}.
        {we counted wrong|we have more guests than thought|a colleague joined in}: # {should also hold|needs|must \
            include} @ {on top|as well|too}.
        {one addition|an afterthought} for #: @.
        {as # hasn't left yet|before you close #|while you pack #}, {slip in|throw in|include} @ {for me|please}.
        {I talked to my {wife|husband|boss|sister} and we want|after some thought we take} @ {with #|on top of #|in \
            addition to #}.
        {extend|enlarge|correct} # {by|with} @, {same invoice|one invoice for all|I pay the difference}.
        {the list for # was short|# was typed in a hurry}, {it should say|what's missing is} @ {as well|too}.
        {put|pack|lay} @ {beside what we have in #|next to the goods of #|along with #}.
    """),
    "cancel_order": lines("""
        {please cancel|I'd like to cancel|kindly delete|we withdraw} # (@), {we found one in the attic|it is no \
            longer needed|the kitchen was closed|our plans fell through}.
        {I ordered|we ordered|my son ordered} @ {by mistake|twice|in the wrong shop}, so please {drop|stop|undo} #.
        {the party is off|the project got stopped|the landlord said no}, {don't ship|no need to send|hold back} @ \
            from #.
        {sorry|my apologies|bad news}, {I have to call off|please take back|we step back from} order #: @.
        @ {under|in|from} # {can be struck|won't be needed|may stay with you}, {my sister had the same idea|budget \
            is gone|we bought locally}.
        {nothing of # should be sent|# must not leave your house}: @.
        {changed our minds about|we no longer want} @, {that is all of #|so # is void|please close #}.
        {if # is not packed yet|as long as # stands in your hall}, {tear up the slip|let it be}: @.
        {I regret|what a nuisance}, but # {is to be called off|should not happen}{, all of it|}: @.
        {you offered to cancel within a day|the web page lets me cancel no more}, so {do it for #|please end #}, \
            {it was|it held} @.
        {no delivery of # please|end order #|forget #}; {we had asked for|it was about} @.
    """),
    "return_items": lines("""
        {I'd like to return|I am sending back|we have to return|back to you goes} @ from {order|our box|} #{.|, all \
            clean.|; please credit it.}
        @ {came with|were part of|arrived in} # {and don't suit us|but the size is wrong for us|and nobody wants \
            them here|which isn't our taste}, {please send a label|how do I return this|where do I hand it in}?
        {please arrange a pickup for|we have to give back|please collect} @ (#), {unused|still sealed|in the first \
            box|never opened}.
        {from # I keep everything except|the following from # goes back|out of # we return}: @.
        {we took too many|far too much|we overdid it} in #, {please take back|going back to you|surplus is}: @.
        {the colour of|the look of|the weight of} @ {is not what we thought|disappoints}, {so # goes back in \
            part|please accept a return on #}.
        {I bought|my mother chose} @ with #, {and it will not fit our shelf|which we own already}; {a return, \
            please|may it go back}?
        {within the fourteen days|still in good time} {I return|I give up} @, {order number|bought as|see} #.
        {after a week of trying|having unpacked #|now that # is here} {we part with|we send back} @.
        {return for #|goods coming back on #}: @.
        {kindly refund|please credit us for} @ of #, {which travels back to you|as it stands packed by the door}.
    """),
    "change_address": lines("""
        {please send|could you deliver|let the van bring|I want you to ship} # to [street], [city] {instead|, not to \
            the old place|from now on|this once}.
        {we have moved|our shop has moved|the team sits elsewhere now}: # {should go to|is to be delivered to|belongs \
            at} [street], [city].
        {wrong address on|I gave the wrong address for|a slip in the address of} #, {correct is|it should be|write} \
            [street], [city].
        {nobody will be home|the office is closed|the road is dug up}, so {redirect|reroute|carry} # to [street], \
            [city].
        {take # to my {brother|neighbour|workshop}|# can go to the {caretaker|back entrance}}: [street], [city].
        {instead of the address you have|the label is out of date}, # {needs|gets} [street], [city].
        {could # still be sent elsewhere|is # on the road yet|may # end up at another door}? {we are now in|the place \
            is} [street], [city].
        {new rooms|new keys|a bigger flat}, new door: [street], [city], {and that's where # belongs|also for #|please \
            use it for #}.
        {kindly alter|please overwrite|update} the {delivery|shipping} address of # {to|into} [street], [city].
        {we take # in at|# will be awaited at|someone can sign for # at} [street], [city]{, not at home|}.
    """),
}

DATES: dict[str, tuple[str, ...]] = {
    "new_order": lines("""
        {it should be here by|we need it by|please deliver on|everything has to stand here on} ~{.|, not later.| at \
            best.}
        {delivery on|arrival by|a van on} ~ {would be perfect|please|suits us|is what we hope for}.
        {the day we have in mind is|mark} ~{.| for the delivery.}
        ~ {is when we need it|would be the right day|is the date}.
    """),
    "change_order": lines("""
        {everything should reach us by|please still deliver by|we keep to} ~{.| as planned.|, if that works.}
        {the delivery may move to|new delivery date:|let us say} ~.
        {all of it together on|bring it all on} ~ {please|would be best}.
        ~ {is early enough|remains the day}.
    """),
    "cancel_order": lines("""
        {please confirm by|I need your confirmation by|let me know by|a word from you by} ~{.| please.| would calm \
            us.}
        {I'll look for your answer until|we wait for a note until} ~.
        {money back by|refund due} ~{, I hope|}.
    """),
    "return_items": lines("""
        {the parcel can be picked up on|your driver may come on|come and get it on} ~{.| before noon.|, the gate is \
            open.}
        {I will hand it to the courier on|pickup possible on|it goes to the post on} ~.
        ~ {is a good day for the van|would suit us for the pickup}.
    """),
    "change_address": lines("""
        {the new address is valid from|we are there from|it holds from} ~{.| on.| onwards.}
        {please deliver there on|arrival there by|be there on} ~.
        {from|starting} ~ {the old door stays shut|nobody opens at the old place|post arrives there}.
    """),
}

CONTACTS = lines("""
    {questions to|please answer to|confirm to|a copy to} ^{.| please.}
    {you reach me at|you can write to|please write to|I read} ^ {if anything is unclear|for the rest|any time|every \
        evening}.
    {contact|e-mail|mail|reply to}: ^
    {the confirmation goes to|send word to|use} ^{, not to this sender|, thank you|}.
    {my colleague at|the office under} ^ {knows about it|handles the rest}.
""")

INTROS = lines("""
    {I hope you are well|hope all is fine at your end|greetings from a rainy [city]}.
    {we have ordered from you since|I've been a customer since|you have known us since} {2018|2020|2022} and {were \
        always happy|it always went well|never had a complaint}.
    {my name is|this is} [name], {I write for our small office|I run a guest house|we spoke last week|I look after \
        the kitchen} in [city].
    {sorry to bother you again|sorry for writing so late in the evening|me again}{, it won't take long|, just \
        briefly|}.
    {your web form kept losing my text|I couldn't find the right form|the shop page is down here}, so {here comes an \
        e-mail|I try it this way|you get it in writing}.
    {it has been a busy month here|we are preparing for the season|the house is full of guests} and {I nearly \
        forgot to write|there is much to arrange|this had to wait}.
    {a colleague told me|I was told on the phone|your neighbour in [city] said} {to write to this address|that you \
        handle this by e-mail|this is the fastest way}.
    {I write on behalf of|this comes from} {the choir|our school kitchen|a small hotel|the allotment club} in \
        [city].
    {short and to the point|without long words|quickly before the weekend}{, if I may|}:
    {the last parcel was packed so well|what a lovely shop you have}{, thank you|, my compliments to the team|}.
""")

ASIDES = lines("""
    {by the way|PS|besides}: {our|my|the} [thing] from last {year|spring|autumn} {still works well|is in daily \
        use|is the pride of the kitchen}.
    {a [thing] is not needed this time|we don't need a [thing], the old one is fine|leave out the [thing] you \
        advertised}.
    {phone|call me|tel.}: [phone], {mornings only|not after six|best around noon}.
    {no gift wrap|no leaflets|no plastic, if possible|no catalogue} please.
    {please leave it with the neighbour|ring twice, the bell is weak|mind the dog|the lift is broken}.
    {my customer number is|customer|we are customer} [customer].
    {thanks for the quick help last time|you were very friendly on the phone|[agent] was a great help}.
    {pay by card as always|invoice as always to the office|we pay within the week}.
    {our cat ate the paper|the printer is out of ink|my eyes are not what they were}{, hence no form|, so excuse the \
        typing|}.
    {is the [thing] coming back into stock|when is the next sale}{? just curious|, I wonder|? no hurry}.
""")

GREETINGS = lines("""
    {hello|hi|dear|good day} {Brindlecove|Brindlecove team|team|people|all}
    {good morning|good afternoon|hello|hello there|good evening}
    {dear sir or madam|to the order desk|hi all|to whom it may concern|dear [agent]}
""")

SIGN_OFFS = lines("""
    {kind regards|best regards|best wishes|thanks|many thanks|cheers|warm regards}
    {yours|greetings from [city]|thank you|until then|take care|bye for now}
""")

# --- reply drafts: what the house says and by when
# ----------------------------------------------------------

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
