"""Phrases that all letters to the invented shop Brindlecove share, and the messages that the reply
drafts answer.

A phrase is one line. ``{a|b|c}`` picks one alternative (they nest, and an alternative may be empty)
and ``[name]`` is filled by the slot of that name in ``generate.py``.
"""


def lines(block: str) -> tuple[str, ...]:
    """Split a block of text into its non-empty lines."""
    return tuple(line.strip() for line in block.splitlines() if line.strip())


# The sentence that carries the category.
CORES: dict[str, tuple[str, ...]] = {
    "late_delivery": lines("""
        {where is|where's} my [thing]{, ordered [ago]|?}
        the [thing] I {ordered|paid for} [ago] {still hasn't come|hasn't shown up|is nowhere to be seen}
        tracking {hasn't moved|has been frozen|says the same thing} since [day]
        {it was meant to|you said it would} be here by [day] and {I'm still waiting|nothing has come}
        the box {never came|never turned up}{, and the neighbours don't have it either|}
        {still waiting on|no sign of} [order], {going on three weeks now|it's been [span]|getting worried}
        the courier page {says "out for delivery"|shows "in transit"} for the {fourth|fifth|third} day \
            {running|in a row}
        I stayed home all [day] for the driver and {nobody rang|no one came|the street stayed empty}
        {how much longer|how many more days} until my [thing] {gets here|reaches me}?
        {has|did} [order] {actually left your warehouse|even been sent}? it has been [span]
        delivered, it says. {not to me|there's nothing on my doorstep|I have nothing in my hands}
        my [thing] was {promised|announced} for [day], today is already {much later|a week after that}
        the status is "label created" and {that was [ago]|it's been like this for [span]}
        {any idea|can you tell me} where the courier {left|lost} my parcel?
        two boxes left together, {only one reached me so far, the other is still on the road|the second is \
            still travelling}
        {it's been [span]|[span]} since the shipping email and my {hall|porch|letterbox} is still empty
        {my parcel seems to be|I think my order is} {stuck|lost} at {the depot|customs|a sorting hall in \
            [city]}
        I {chose|paid extra for} express and {standard would have been faster|it's on day nine|am still \
            waiting}
        {next day|48 hour} shipping, {you said. that was [ago]|really? I ordered [ago]}
        {when|on what day} does the [plan] for this month {ship|arrive}? the last one was here by the \
            {third|second|fifth}
        my [month] [plan] {didn't come|hasn't reached us|skipped us}, everybody else in the group has theirs
        the driver {marked it|claims it was} handed over at [time], {I was home and saw no one|that is not \
            true}
        [order] {overdue|very overdue}, {any news|what is happening|update please}
        {the party is|her birthday is} on [day] and the [thing] is {still somewhere between you and me|not \
            here}
        {nothing has arrived|empty hands here} {yet|so far}, can you {chase|poke} the carrier?
        the pickup shop {never got|says it does not have} my package, {I've been there twice|number [order]}
        it keeps {sliding|moving}: first [day], then {the weekend|next week}, now no date at all
        {how come|why is} something from a warehouse {forty|sixty} km away {takes a month|is not here after \
            [span]}
        the courier sent my parcel back and forth, {I want to know when it finally arrives|it still isn't \
            here}
        you wrote "{a short hold-up|slight delay}" {[ago]|on [day]} and since then {silence|not one word}
        {expected|estimated} arrival was [date], {we're well past that|that came and went}
        {is my package lost|has my parcel vanished}? last scan was [ago] in [city]
        still no [thing] {here|at my door}
        what's the hold up with [order]
        I keep refreshing the map and the {van with my parcel|courier's dot} {doesn't budge|sits in [city] \
            since [day]}
    """),
    "refund_request": lines("""
        {I'd like|I want} my money back for the [thing]
        {please refund|refund me for} [order]{, I changed my mind|, it's not for me|}
        I sent the [thing] back [ago] and {haven't seen a cent|my account shows nothing|am still out of \
            pocket}
        you {got|received} my return on [day], {when do I see|where are} the [amount]?
        {can|could} you put the [amount] back on my {card|account}?
        {how long does it take until|when will} the money for the returned [thing] {shows up|is back with me}?
        the [thing] {is not what I hoped for|is too big for our kitchen|doesn't suit me}, {I'd rather have \
            the cash|how do I get reimbursed}
        {I called off|you called off} [order] before it shipped but the [amount] {never came back|hasn't \
            been returned to me}
        {we agreed on|your colleague promised} {a repayment|reimbursement} of [amount], {it hasn't \
            landed|still nothing}
        return dropped off at the parcel shop [ago], {what about the payment|so please pay me back}
        {a credit note is no use to me|I don't want store credit}, {I want the actual money|please transfer \
            it instead}
        only {half|part} of what I paid {came back|was returned} for the [thing] I sent you, please \
            {pay|send} the rest
        {I'm within|still inside} the 30 days, so {please take back|I would like to give back} the [thing] \
            and {reimburse me|return what I paid}
        {my husband|my sister|a friend} bought the same one, so I don't need mine: {money back please|how \
            do I get my [amount] again}
        {is it possible|would it be possible} to get {what I paid|the [amount]} back for the unopened [thing]?
        you confirmed the return in [month] but {my bank has seen nothing|no transfer followed}
        {give me|I demand} my [amount] back {now|today}
        the repair {took too long|isn't worth it}, I now prefer {to be paid out|a full reimbursement} for \
            the [device]
        I would like to {withdraw from|step back from} the purchase of the [thing] and {be repaid|have the \
            sum returned}
        {your mail says|the app says} "refund issued" [ago] yet {nothing on my statement|my balance is the \
            same}
        the card I paid with {is closed|expired}, {where will you send the repayment|can the money for my \
            return go to another account}?
        can I {return|bring back} the [thing] for a full refund? {it's still sealed|only opened once|never \
            used}
        {you owe me|I'm owed} [amount] for the [thing] I {posted|mailed} back
        {shipping costs should be paid back too|you forgot the postage when paying me back}, I'm still \
            {4.90|5.90|6.50} short from the return
        {not happy with|disappointed by} the [thing], {what are the steps to get my money|I'd like to undo \
            the purchase and be paid back}
        the gift wasn't {liked|wanted}. {refund to the buyer possible?|can the [amount] return to my card?}
        waiting for my refund since [date]
        {please hurry with|any news on} the repayment, {rent is due|I need that [amount] for other things}
        I gave up waiting for the [thing] and {you agreed to pay me back|got told I'd be reimbursed}, \
            {where is it|so when}?
        {the old|my broken} one went back to you, I {don't want another|prefer no new one}, {just the sum I \
            paid|only the [amount]}
        {how|where} do I {ask for|claim} {a refund|my money}
        when does [order] get {reimbursed|paid back}
    """),
    "faulty_device": lines("""
        my [device] {stopped working|died|gave up} {after [span]|this morning|overnight}
        the [device] {won't turn on anymore|is completely dead since [day]|shows no sign of life}
        it {worked|ran} {fine|perfectly} for [span], now {the display stays black|it only blinks|the motor \
            hums and nothing turns}
        the battery {doesn't hold|no longer takes} a charge, {it used to last a week|empty in an hour}
        [device] {switches itself off|restarts} {every few minutes|in the middle of a cycle|whenever it \
            gets warm}
        {there's|I hear} a {grinding|rattling|screeching} noise from the [device] {when it \
            runs|lately|since [day]}
        {error|code} E{2|4|7|9} on the screen{, manual says call you|, what does it mean|} and it refuses \
            to run
        the {button|dial|touch panel} {no longer reacts|got stuck|only responds sometimes} on my [device]
        {it's leaking|water drips} from the {bottom|base} {since last week|after [span] of normal use}
        my [device] {shows wrong numbers|reads five degrees too high|gives nonsense values} {lately|these \
            days}
        {smoke|a burnt smell} came out of my [device] {after [span]|while heating}, {it no longer runs|is \
            that covered by warranty}
        {is this a warranty case|does the guarantee cover this}? the [device] {quit|conked out} \
            {[ago]|after [span]}
        since the {last update|new firmware} the [device] {freezes|hangs|crashes}, {it was fine \
            before|restarting is no help}
        it drops {off the network|the connection} every night{, though it was rock solid for [span]|, has \
            done so since [month]}
        the {heating|pump|fan} {has become weak|barely does anything now|cuts out} on a [device] I've had \
            for [span]
        {bought it in [month]|only [span] old} and already {kaputt|broken down|not usable}
        charges forever but {never gets past 20 percent|the light stays red|is flat once I unplug it}
        I {descaled|cleaned|reset} it {twice|three times} and the [device] still {blinks red|won't \
            heat|makes that noise}
        second [device] in a year that {packs up|fails on me}, {do you repair these|I need it fixed}
        the lid sensor {thinks it's open|plays mad}, so {nothing starts|it beeps all day}
        after [span] {the screen|half of the display} of the [device] has {faded|gone dark|dead lines}
        {the timer|its clock} {loses|forgets} {ten minutes a day|the schedule at night}, {it never used \
            to|new problem since [month]}
        no steam, no heat, {no nothing|just a click}. {yesterday it was fine|had been ok for [span]}
        can {someone|a technician} {repair|have a look at} my [device], it {trips the fuse|gives me small \
            shocks} {now|since [day]}
        {my plants died because|the herbs dried out as} the [device] {quit watering|stopped measuring} \
            {without a warning|while we were away}
        after {a power cut|a thunderstorm} the [device] {does not come back to life|is stuck in a loop}
        the [device] {cuts out|goes dead} {mid use|halfway}
        it {used to|once would} {whisper|run quietly}, now it {roars|sounds like a tractor} and {does half \
            the job|takes twice as long}
        {blade|motor|spring} {seized|snapped|jammed} during {normal use|breakfast}, {[span] after \
            buying|the thing is not even a year old}
        do you {repair|fix} a [device] that {overheats|keeps cutting out|has no power anymore}?
        {the app shows it offline forever, although|it says offline even though} {the same setup worked all \
            spring|nothing changed here in [span]}
        [device] {broken|kaput}, still under {warranty|guarantee}
    """),
    "cancel_subscription": lines("""
        {please cancel|cancel} my [plan]
        {I want to|I'd like to} {stop|end|quit} the [plan] {as of [month]|from next month|right away}
        no more [plan] {for me|for us} {please|from now on}
        {we have|there are} {far too many|six unopened} bags here, {take me off the monthly list|no further \
            boxes please}
        how do I {get out of|leave} the [plan]? {can't find the button|the page only offers an upgrade}
        {this month's|the [month]} box {should be|will be} {the last one|my final one}
        {do not|don't} renew my [plan] {when it runs out|in [month]|again}
        {I hereby give notice|this is my notice} {for|on} the [plan]{, please confirm|}
        {we're moving abroad|I lost my job|I stopped drinking coffee}, so {the regular boxes have to end|I \
            must drop the [plan]}
        {the trial|my free month} {is over soon|ends on [day]} and I {don't wish to go on|won't continue}
        what is the notice period for {the [plan]|ending the monthly box}? I {want out|won't be keeping it}
        I {tried|clicked} "end my plan" {three times|last week} but {it is still active|the page jumps back}
        {please make sure|see to it} that {nothing more ships after [month]|no further [plan] goes out}, we \
            are done with it
        {my mother|my late father} {no longer lives at home|passed away}, {her|the} [plan] {needs to be \
            ended|should not go on}
        I {thought|believed} it was a one-off purchase, {not a recurring one|I never wanted it every \
            month}, so {end it|switch it off}
        {downgrade isn't enough|pausing doesn't help me}, I want {to be out entirely|the contract closed}
        {it got too expensive|the price went up}, {so I'm leaving the [plan]|I will not carry on with the \
            [plan]}
        the [plan] {isn't for us anymore|has run its course}, {please end it, thanks for two nice \
            years|please close it}
        {terminate|discontinue} {the [plan]|my membership} {effective immediately|by end of [month]|please}
        {I have two|somehow there are two} [plan] contracts, {one must go|please end the second, keep the \
            first}
        {unsubscribe me from|sign me off} the [plan]{, the boxes I mean|, not the newsletter}
        can I {stop|quit} {mid-term|before the year is up}? {the [plan] I mean|it's about the [plan]}
        my {flatmate|ex} started the [plan] {in my name|on my card}, I {want it ended|do not want it to go on}
        {please confirm in writing that|is it certain that} my [plan] {ends on [date]|won't roll over}
        {no further boxes please|please end the [plan]}, {I'm switching to a local roaster|I'd rather buy \
            when I need something}
        {I'm not using|nobody here uses} what comes every month, {let's end it|please stop the [plan]}
        stop sending me {filters|beans|seeds|tea} every month
        {quit|ending} the membership, {what do I need to do|how}
        {don't prepare|please don't pack} another [plan] for us{, ever|}, we've had enough
        you renewed my [plan] although I {gave notice in [month]|had told you to end it}, {so end it \
            now|please close it properly}
    """),
    "damaged_item": lines("""
        the [thing] {arrived|came} {broken|smashed|in pieces|cracked}
        {opened the box|unpacked it} and the [thing] {had a big crack|was shattered|was bent}
        {the carton|the parcel} {was crushed|looked like someone sat on it} and {the [thing] inside is \
            dented|what's inside didn't survive}
        {one of|two of} the {mugs|jars|glasses} {is chipped|has no handle left|was in splinters} {straight \
            out of the box|on arrival}
        {there's a scratch|deep scratches} {across|on} the [thing], {right from the package|it's brand new}
        {the glass|the jug|the lid} {had a crack|was split} when I {took it out of the wrapping|lifted it out}
        {everything|the whole box} was {wet|soaked} {and the [thing] is ruined|when the courier gave it to \
            me, [thing] spoiled}
        {poor packaging|no padding at all}, {so of course|and so} the [thing] {got wrecked on the \
            way|didn't make it in one piece}
        {bag was torn|the seal had burst}, {beans all over the carton|half the contents spilled in the box}
        I {have photos|can send pictures} of the {dent|crack|broken corner}, {where do I send them|it came \
            like that}
        {looks as though|seems} the [thing] was {dropped|kicked} {somewhere on the way|in transit}: {the \
            side is caved in|the foot snapped off}
        {the plastic|the housing} of the new [device] is {cracked at the corner|split along the side} {as \
            delivered|fresh from the carton}
        {my|our} [thing] was {delivered|handed over} with {a hole in it|a snapped handle|a broken plug}
        {third time|again} something {reaches me|gets here} in {shards|bits}, this time the [thing]
        {the courier|your driver} {threw it over the fence|left it in the rain} and now the [thing] is \
            {ruined|in bits}
        {just unboxed|unboxing} my [thing] and {a piece is off|the front is cracked|there's a dent in it}
        {half the|some} {seedlings|pots} {arrived squashed|were crushed flat} in this [plan]
        the {tin|jar} {was dented so badly it won't open|came with a smashed lid}
        {the outside looks fine but|box perfect,} {the [thing] rattles, a piece has broken loose inside|the \
            [thing] in it is cracked}
        {don't know if|maybe} the courier {dropped it|was careless}: [thing], {cracked base|bent hinge}, \
            {brand new|day one}
        {cut my finger|nearly cut myself} on the {shards|broken glass} when I opened your parcel
        {the corner is smashed in|a big dent in the front} and I have only {just taken it out|now unwrapped \
            it}
        the [thing] {didn't survive the trip|travelled badly}, {what now|can I get an intact one}
        {I need|please send} {an unbroken one|a new lid}, the one {in the box|delivered [day]} is \
            {cracked|in two halves}
        ordered a present, got {a pile of shards|a box of fragments}
        {smashed|cracked|broken} on arrival: [thing]
        {not a scratch on the box|packaging intact}, yet the [thing] {has a chip|is warped} {out of the \
            wrapping|as if it had been dropped before packing}
        {the paint|the enamel} {was flaking|had come off} {where it hit the box wall|when it got here}, \
            {clearly bumped on the road|not acceptable for new goods}
        {oil|syrup} {leaked|ran} out {over everything|inside the parcel} because the bottle {was \
            cracked|had burst}
        {is there a form for|how do I report} {transport breakage|goods that got broken on the way}? {it's \
            the [thing]|[order]}
    """),
    "setup_help": lines("""
        how do I {connect|pair} the [device] {to|with} {my phone|the app|our wifi}?
        {the app|my phone} {can't find|doesn't see} the [device]{, first try|, just unpacked|}
        {just got|new here with} my [device], {which button do I hold to start pairing|what do I do first}?
        {the quick start card|the leaflet} {makes no sense|has no English part|only has pictures}, {how do \
            I begin|what comes after step 3}?
        it asks for a {pairing|six digit setup} code, {where do I find it|is it printed somewhere}?
        {does|will} the [device] {need 2.4 GHz|work with a mesh router|run without internet}? {first \
            install|we are on step one}
        {stuck at|can't get past} {"searching for devices"|"joining network"|step 4} {during the \
            installation|in the assistant} of my new [device]
        {can|how can} I {add|hook up} a second [device] {to the same app|on one account}?
        {how to|where do I} {change|set} the {language|units|water hardness} {on the [device]|the very \
            first time}?
        {new router|we changed the wifi password}, {how do I tell the [device]|how does the [device] get \
            onto the new network}?
        my father {is 81|has no smartphone}, {can he start the [device] without an app|who can walk him \
            through the first steps}?
        {is there a video|do you have a guide} on {mounting|assembling|installing} the [device]?
        {which|what} {cable|screw|tank} goes where on the [device]? {everything is on the table|the drawing \
            is tiny}
        {bluetooth is on|location is allowed}, {phone is right next to it|tried two phones}, still {no \
            pairing|the brand-new [device] isn't listed}
        {do I have to|must I} {rinse|charge|calibrate} the [device] before {the first use|using it}?
        how do I {schedule|program} the [device] {for mornings|to run at [time]|on weekdays only}?
        {would like|I'm trying} to {link|connect} the [device] {to a voice assistant|with my home hub}, \
            {what are the steps|no idea how}
        {what does|why is there} the blinking blue light {mean while I'm setting it up|on first start}?
        {the light should turn green, says the manual|manual says wait for a beep}, {nothing so far, am I \
            doing it wrong|did I miss a step} installing this?
        {I bought my [device] second hand|got the [device] from a friend}, how do I {pair it afresh|set it \
            up in the app}?
        {which app|what is the app called that} do I {download|need} for the [device]{ on an older tablet|}?
        the app {wants|asks for} {a serial number|a hub name} {to register it|when adding the [device]}, \
            where's that?
        {can someone|could anybody} {talk me through|explain} {getting started|the first start} with the \
            [device]?
        the [device] is {out of the box and on the counter|unpacked and plugged in}, {how do I start|and \
            how do I get it talking to the wifi}?
        {how far|how high} should the [device] {be placed|hang}{ from the router|} {for a good start|when \
            installing it}?
        {moved|changed} to a new phone: {how do I bring my [device] over|do I have to pair all over again}?
        {instructions|manual} {for|about} the [device] {please, none in the box|got thrown away, how do I \
            begin}
        I {cannot work out|don't understand} how {the tank clicks in|to fit the filter} {for the first \
            time|the first time round}
        where is the reset pin {to start pairing over|for a clean start}? {I mistyped the wifi name|I \
            picked the wrong network}
        help connecting [device]
        {guest network|hidden network|office wifi with a login page}: can the [device] {join that|be put on \
            it}, and how?
    """),
    "billing_error": lines("""
        {I was|I've been} {charged|billed} {twice|two times} for [order]
        {my statement|the bank} shows [amount] {but|although} the {price was|checkout said} [amount]
        {what is|can you explain} {this|the} {charge|debit} of [amount] {from [date]|on my card}? {I bought \
            nothing|don't recognise it}
        you took {the money|[amount]} {two times|twice} {on the same day|within a minute}
        {there is|I see} an extra {9.90|4.50|12.00} on my {card|statement} {that nobody can explain|I never \
            agreed to}
        the [plan] costs {12|15|19} a month, {why was I charged|how come you took} {24|30|38} {this time|in \
            [month]}
        {shipping was supposed to be free|I picked free shipping} yet {5.90 got charged to my card|you \
            debited postage}
        {you billed|charged} me in {dollars|another currency}, {should be euros|it cost me a fee at the bank}
        {the total|your sum} {doesn't add up|is wrong}: {two|three} items and {somehow|yet} [amount]
        {my order|[order]} {failed at checkout|didn't go through} but the {money left my account \
            anyway|amount was taken}
        {unknown|strange} {debit|payment} {by Brindlecove|from your shop}, [amount], {what is that|never \
            ordered anything}
        {tax was added|VAT was counted} twice {on [order]|in the total}
        {paid by transfer|I paid already on [date]} and {now there's a reminder|you send a dunning letter} \
            {as if I hadn't|with a late fee}
        {the family plan price|the yearly price} was agreed, {you charged me|my card was debited} {the \
            single rate|monthly fees} instead
        I {ended|left} the [plan] in [month], {yet you keep taking [amount]|why is there still a monthly \
            debit}
        {why does|how can} the same {order|purchase} {appear|show up} {three times|twice} in my banking app
        {wrong|incorrect} amount {debited|taken|on my card} for [order]
        {overcharged|you overcharged me} by [amount]
        {I got|there's} a {late fee|reminder fee} {of [amount]|} although {everything was paid on \
            time|nothing was open}
        {checkout said|on the site it was} [amount], {on my card it became|the debit reads} [amount]{, \
            explain please|}
        {one [thing] ordered, paid for three|you have charged a quantity of three, I took one}
        {a pending|some pending} payment of [amount] {plus a booked one|and then the same again}, {that's \
            double|one too many}
        {please correct|someone should check} {my bill|the calculation}, {the deposit wasn't deducted|the \
            price per piece is too high}
        the price {at the till|I saw when ordering} {and|versus} the price on my card {differ|don't match} \
            by [amount]
        {card ending|the card ending in} {1111|4444|0005} was {hit|debited} {again|two times}, {I approved \
            one payment|only one purchase was made}
        {is somebody using my card|has someone got my card details}? [amount] to your shop, {wasn't me|I \
            made no order}
        {you charged for|paying for} {gift wrap|insurance|a warranty extension} I {didn't tick|never asked \
            for}
        {my account|my card} was {debited|drawn} on the {first|third} instead of the {fifteenth|twentieth}, \
            {and for the wrong sum|with an odd amount}
        {bill is not|you didn't take} {what we agreed|the quote}, [amount] {instead of|and not} \
            [amount]
    """),
    "password_reset": lines("""
        {I forgot|can't remember} my password {and|, also} {the hint is no help|I need back in}
        {I can't|unable to} {log in|sign in} {anymore|since [day]|to see my orders}
        {the reset|the recovery} {mail|link} {never arrives|hasn't reached me|isn't in spam either}
        {the link|the page behind the link} {says expired|leads to an error} {each time|before I can type a \
            new one}
        {locked out|I'm locked out} after {three|five} {wrong tries|attempts}
        it {keeps saying|claims} {"wrong credentials"|"user unknown"}, {I'm certain they're right|they \
            worked yesterday}
        {the login code|the six digit code} {by text|to my phone} {doesn't come|always comes too late}
        {my old phone is gone|I lost my phone}, so {no second factor|I can't get the sign-in code} {and \
            can't get in|}
        {can you|please} {unlock|open} my {profile|account} {again|, too many attempts it says}
        {my email changed|I no longer have that mailbox}, so {the recovery link goes nowhere|how do I get \
            into my account}?
        {new|fresh} password {please|needed}, {the website won't let me set one|old one isn't accepted}
        {the site|your page} {throws me out|logs me off} {as soon as I'm in|right after signing in}
        {how do I|where can I} {pick|set} a new {passphrase|password}? {mine was in a notebook I lost|the \
            browser forgot it}
        {no access to my account|shut out of my own account} since {the update|your new website|[day]}
        {it wants|the form wants} a {special character|capital letter}, I {give it one|add one} and it \
            {refuses|still says no}
        {my daughter|someone|I must have} changed the {login|password} and {now nobody knows it|I cannot \
            get at my orders}
        {"account temporarily blocked"|"too many attempts"}, {for how long|what do I have to do}?
        {tried|typed} every {password|variation} I {know|ever use}, {the login stays shut|still can't get in}
        {authenticator|the code app} {lost|was wiped}, {help me back in|how do I prove it's me}?
        {I never set|there never was} a password, {I ordered as guest|my friend made the account}, {how do \
            I enter now|and now it asks for one}
        {which email|what username} did I {register|sign up} with? {neither of mine works|I can't get in \
            with either}
        {the captcha|the picture puzzle} {loops forever|never ends} when I {try to sign in|want in}
        can't {login|log on|get in}, {help|pls fix|any ideas}
        {sign-in with face|fingerprint} {is gone|stopped} and it {wants a password I don't have|asks for \
            something I set in 2019}
        {three reset mails|two recovery mails} {requested|asked for}, {zero received|none came}
        {wrote down my pin|had it on paper}, {but it's not accepted|the app shakes its head}, how do I get \
            a fresh one?
        {it logs me into|I land in} {an empty profile|my wife's profile}, {not my own|my own won't open}
        {please trigger|can you send} {a new activation mail|another recovery link}, {the first one ran \
            out|I was too slow}
        {the app|website} {forgot me|signed me out} and {won't let me log in again|does not accept my login}
        my {mother|dad} {can't get into|is shut out of} {her|the} account{, she is sure about the \
            spelling|, says unknown user}
    """),
    "wrong_item": lines("""
        I {ordered|asked for} a [thing] and {got|received|unpacked} a [thing]
        {this isn't|that's not} what I {ordered|bought}{, somebody mixed up the boxes|: [thing] instead of \
            [thing]|}
        {you sent|I got} the {black|white|green} one, {I'd chosen|order says} {red|blue|cream}
        {wrong|incorrect} {size|colour|model|plug} {in the box|in my parcel}, [order]
        the parcel {holds|has in it} {somebody else's order|things meant for a person in [city]}
        {one|a} [thing] is missing {from|in} the {box|parcel}, {the slip lists it|everything else is there}
        {I ordered|it should be} {two|four|six} {jars|mugs|refills}, {the box has only one|only half are in \
            the carton}
        {ground|decaf} {instead of whole beans|though we always take regular}, {mix-up in this month's \
            box|someone grabbed the wrong bag}
        the {power adapter|lid|manual|hose} {wasn't in the box|is not included although it should be}
        {the label says|outside it says} [thing], {the inside says otherwise|inside there is a [thing]}
        {nice [thing]|lovely [thing]}, {but it isn't mine|only I never ordered one}
        {received|got} the {small|large|old} version, {my order confirmation says|we picked} the \
            {big|small|newest} one
        {a US plug|a UK plug} {came with|on} the [device], {I need an EU one as ordered|order was for the \
            other type}
        {you've swapped|somebody swapped} {my box with another customer's|two orders}, {mine has baby \
            spoons in it|I hold a [thing] I never wanted}
        {part|a bit} of [order] {is not in the carton|was left out}: {no [thing]|the [thing] isn't there}
        {filters|the cartridges} {don't fit my model|are for the older model}, {I picked the right \
            ones|order line is correct}
        {twice as many|a dozen} [thing]s as {ordered|I wanted}, {what do I do with the rest|where do the \
            others go}
        {not the [thing] from the picture|different from the photo}, {another model altogether|other brand \
            even}
        {this month's [plan]|the [plan]} {had|contained} {the vegan|the spicy|the kids} selection, {not the \
            one I picked|we're on the classic one}
        {the box is someone else's|name on the slip is a Mr [surname]}, {mine says [order]|and contents \
            likewise}
        {mixed up|mix-up}: {expected|wanted} [thing], {found|unwrapped} [thing]
        {please swap|can we exchange} the [thing] {you packed|I was sent} for the {one I ordered|right colour}
        {three items on the list, two in the box|five on the slip, four inside}, {where's the \
            [thing]|[thing] forgotten}
        {empty box inside the box|the inner box was empty}, {no [thing] in it|you forgot the [thing]}
        {got|have here} {a left-handed one|the kids size|the 220 V one}, {not what's on my \
            confirmation|that's not on my order}
        {who packs these|do you check before packing}? {a [thing], really|I'm looking at a [thing]} when I \
            chose a [thing]
        {the colour in the box is|you sent it in} {grey|pink|yellow}{, not the blue I paid for|, I had \
            clicked on mint}
        {spare|extra} {lid|blade} {was part of the set|belongs in the set}, {not there|set is incomplete}
        {item missing|something missing} from [order]
    """),
    "promo_code": lines("""
        {the code|code} [code] {doesn't work|isn't accepted|gives an error}
        {I entered|typed in} [code] and {the price didn't change|nothing came off}
        {my discount|the 15 percent} {wasn't applied|is missing} {at checkout|in the basket}
        {the voucher|my gift card} {is said to be expired|"has already been used"}, {I got it last \
            week|that can't be}
        {where do I|how do I} {enter|type|redeem} the {voucher|coupon|gift card}?
        {can I|is it allowed to} {combine|stack} [code] with the {sale|bundle price|welcome offer}?
        {the newsletter promised|your mail promised} 10 percent off {for new customers|on the first order}, \
            {where is it|how do I get that}
        {forgot to|didn't} {enter|use} [code] {when ordering|before paying}, {can it be added afterwards|is \
            there still a chance}?
        {is there|do you have} {a student|a nurse|a teacher} discount{ these days|}?
        {does|will} [code] {also count for|work on} the [plan]?
        {friend|referral} bonus {hasn't shown up|not credited}, {she ordered through my link|my sister \
            signed up [ago]}
        {"not valid for this basket"|"minimum not reached"}, {why|what's wrong with the coupon}? {only a \
            [thing] in it|it's full price stuff}
        {how long|until when} {is code [code] valid|can I use my voucher}?
        {the code|the number} on my gift card {is unreadable|got rubbed away}
        {the black friday|summer sale|spring} price {shows on the product page|is advertised}, {not in my \
            cart|the basket ignores it}
        {used my points|loyalty points}, {but the total stays the same|the rebate isn't deducted}
        {my birthday coupon|the coupon from the leaflet} {hasn't come this year|won't go through}
        {what's left|how much is left} on my gift card?
        {paid full price|checkout took full price} although [code] {showed a green tick|was accepted first}
        {do you have|any} {deal|reduction|offer} {if I take three [thing]s|for a school class|for regulars} \
            {at the moment|?}
        {two vouchers|both coupons} at once? {the box takes one only|it removes the first when I type the \
            second}
        {code|coupon} [code] {pls check|not working}
        {the influencer's code|the podcast code} {isn't recognised|says unknown}, it was {announced \
            yesterday|valid till [day]}
        {saw the [thing] 20 percent cheaper|lower price two days} {after buying|later}, {can I get the sale \
            price too|do you match that offer}?
        {my basket says|total shows} [amount], {with the coupon it should be less|the 20 off isn't in \
            there}, {haven't paid yet|so I wait with ordering}
        {free shipping|no postage} {coupon|voucher} {ignored|does nothing} {in the app|on the phone}, {on \
            the laptop it's fine|tried twice}
        {you promised a goodwill|I was given an apology} {voucher|coupon} [ago], {what's the code|it never \
            landed in my profile}
        {capital letters or small|with or without dash}? my {voucher|gift code} {is refused either \
            way|keeps being turned down}
        {sale ended at midnight|the offer ran out} while {I was at checkout|my cart was loading}, {can you \
            still honour it|any mercy}
    """),
    "address_change": lines("""
        {I'm moving|we move} on [date], {new place is|please send everything to} [street], [city]
        {please change|can you update} {my|the} {shipping|delivery} address {to|:} [street]
        {typo in the house number|I got the house number wrong}: it's {14|27|8}, not {41|72|3}
        {can [order] still|could my order} go to {my office|a neighbour|my parents} instead{: [street]|}?
        {my old flat|the former address} is still {saved|in your system}, {replace it with|correct is} \
            [street], [city]
        {we've moved|moved house} {last week|in [month]}, {the next box should come here|where do I enter \
            the new street}?
        {how do I|where can I} {edit|correct} {where my parcels go|the place you deliver to}? {the field is \
            greyed out|save does nothing}
        {the postcode is wrong|wrong postal code} on [order], {please fix before it ships|should end in 40}
        {please don't send it to|not to} [street] {anymore|any longer}, {I live in [city] now|I've left \
            that place}
        {redirect|reroute} [order] {to a parcel locker|to [street]|to [city]}, {I'm away|nobody's home in \
            [month]}
        {new address|my new address} [street], [city]
        {my street was renamed|the town gave our street a new name}: {it's now|please store} [street]
        {apartment number missing|I left out the floor}, {add flat 3b|it's 4th floor left}, [order]
        {billing stays the same|keep the bill where it is}, only {the boxes|parcels} {should go \
            elsewhere|go to [street] from now on}
        {during|for} the {summer|holidays} I {live|stay} {at the lake house|with my son}, {ship the [plan] \
            there|can you deliver to [street]}
        {I accidentally|by mistake I} {picked|left} {my ex's place|the old place} as {destination|where it \
            goes}, {can that be switched|please switch it}
        {from [month]|starting [month]} we live in [city], {note that down for the [plan]|update us please}
        {it'll go to the wrong town|you have us in the wrong town}: {[city] not [city]|there are two called \
            [city]}
        {can you send|is sending} {this one order|only this one} {to another street possible|to my sister's \
            house}? {profile stays as is|just once}
        {relocating|new home}, {who do I tell|what do you need}? {the [plan] should follow me|don't want \
            boxes at the old door}
        {the name on the bell changed|I married}, {parcels should now be marked|write} [surname] {and \
            [street]|}
        {delivery place|drop-off spot} {for [order]|} {should be|->} [street], {not what the form filled \
            in|autofill got it wrong}
        {please deliver to work|ship to my workplace} {from now on|this time}: [street], [city]
        {old house sold|keys handed over}, {new door is|you find us at} [street] {from [date]|}
        {I can't|unable to} {overwrite|delete} my former {home|street} in {the profile|the app}, it {always \
            jumps back|keeps the old one}
        {country is set to|it shows} {Austria|Belgium|Ireland}, {I've gone back to|should be} \
            {Portugal|Denmark|Spain}, please {adapt where you ship|amend my shipping details}
    """),
    "stock_question": lines("""
        {when|do you know when} will the [thing] be {back|available again}?
        will the [thing] {come|be made} in {blue|black|a bigger size|green} {again|too|as well}?
        {sold out|greyed out} for [span] now, {is the [thing] gone for good|will you get more}?
        {do you still|will you keep} {sell|make|carry} {spare lids|replacement seals|filters} for the \
            {older|first} [device]?
        {how many|are there enough} [thing]s {do you have|are there} in stock? {I'd need|we want} \
            {12|20|35} {for our office|for a wedding}
        {can you|could you} {put one aside|reserve a [thing]} {till [day]|for me}?
        {the site says|page says} "coming soon" {since [month]|for weeks}, {how soon|any date} for the \
            [thing]?
        {have you discontinued|are you dropping} the [thing]? {can't find it in the shop|it vanished from \
            the page}
        {email me|let me know} {when|as soon as} the [thing] {can be bought again|returns}
        {is there a|any} waiting list for the [thing]?
        {looking for|I'm after} a [thing] {like the one from 2022|in cream}, {do you still have any|can it \
            still be bought}?
        {will|is} the {new version|next generation} of the [device] {be out before christmas|planned}? {I'd \
            wait with buying|}
        {does your [city] store|do your shops} {have|carry} the [thing]{ on the shelf|}?
        {only 2 left, it says|"few left"}, {is that true|will there be more next week}? {thinking about \
            buying|want one on payday}
        {can you get|is it possible to get} the [thing] {without the app|with a glass jug|in a set of six}?
        {which|what} {colours|sizes} {will there be|are coming} {in autumn|next season} for the [thing]?
        {pre-order|preorder} {possible for|open for} the [thing]?
        {do you ship|would you sell} the [thing] to {Norway|Iceland|Malta}, {or is it only sold at \
            home|haven't ordered yet}?
        {the button says notify me|"notify me" I clicked}, {realistic|what do you expect}, {weeks or \
            months|spring or later}?
        {what replaces|what's the successor of} the [thing] {you took off the page|that's gone from the shop}?
        [thing] {in stock|available}?
        {will the|is the} {christmas|summer} edition of the [plan] {return|be offered} {this year|again}?
        {want to buy|I'd buy} {four|two} more [thing]s {matching mine|of the same kind}, {but the shop \
            shows none|do you still have any}
        {are the|do you offer} {gluten free|organic|decaf} {versions|sorts} {regularly|again soon}? {I see \
            none at the moment|shelf looks empty online}
        {restock|new batch} {of the [thing]|} {planned|this month}?
        before I {order|decide}: is the [thing] {in stock|really available} or {only on backorder|sold out}?
    """),
    "invoice_copy": lines("""
        {I need|please send} {an invoice|a receipt|a proper bill} for [order]
        {my accountant|the tax office|bookkeeping} {wants|needs} {a document|paperwork} for the [thing]
        {can you|could you} {email|send} me {the bill|the receipt} {again|once more}? {lost mine|deleted it}
        {the invoice|bill} {must|has to} {show|carry} our {company name|VAT number|cost centre}
        {where can I|how do I} {download|print} {my invoices|last year's receipts}?
        {no pdf was attached|there was no bill in the parcel}, {my employer pays me back only with \
            one|expenses are due [day]}
        {please issue|issue} {the bill|it} {to my firm|to [surname] & Partners}, {not to me \
            privately|instead of my name}
        {need|looking for} all {receipts|bills} from {2023|2024|January to March} {for my tax return|in one \
            file}
        {the pdf|the document} {won't open|is blank|only has one page}, {can I have the bill for [order] as \
            a new file|resend the receipt}
        {proof of purchase|a sales slip} {for|of} the [thing] {please|}, {my insurance asks for it|the \
            insurer wants to see it}
        {I paid [amount]|you booked [amount], correctly,} but {never got a document about it|there's no \
            voucher for my books}
        {do you do|is there} {a collective|one monthly} invoice for {the school|companies}? {we need one \
            per month|accounting asks}
        {our purchasing system|the finance team} {needs|requires} {a PO number on it|net and tax listed \
            separately}, {can the bill be rewritten|new copy please}
        {customs|the border office} {wants|asks for} a {commercial invoice|paper showing the value}
        {duplicate|a second copy} of {the bill|my receipt} {from [date]|for [order]}
        {the credit note|a written confirmation} for my {returned|repaid} [thing] {as pdf please|is what I \
            need for the files}, {money is here already|the money came}
        {it only says "[device]"|the item line is too vague}, {can you print the serial number on the \
            receipt|my boss wants the full description on the bill}
        {bill|receipt} for [order] {pls|missing}
        {the VAT|tax} {line|rate} isn't {shown|itemised} {on the paper you sent|on the receipt}, {we can't \
            book it like that|could I get a corrected one}
        {is the order confirmation|does the delivery note} {valid|count} as {a bill|a tax document}, {or do \
            you send one|if not, send me one}
        {I have to hand in|our club must file} {something with a stamp|an official slip} {for the \
            [thing]|for [order]}
        {written|printed} {statement|overview} of {everything I bought|what I spent} {in 2024|last year}, \
            {for the tax people|for my records}
        {not in my mailbox|nothing attached}: the {bill|pdf} for {the [month] box|my [plan]}
        {what's the invoice number|which number does the bill have} for [order]? {need to quote it|my bank \
            asks}
        {in English please|could it be in German}: {the bill|receipt} for [order], {our auditor can't read \
            this one|head office insists}
    """),
    "privacy_request": lines("""
        {please delete|erase} {my account|all my data|everything you hold on me}
        {what data|which information} do you {have|keep|store} {about me|on my family}?
        {send me|I'd like} a copy of {all the data|everything} you {store|hold} about me
        {stop|please stop} {sending me|} {newsletters|advertising|promotional texts}{, I never signed up|}
        {who gave you|where did you get} my {number|email}? {I get ads from you|never been a customer}
        {remove|take} my {phone number|photo|birthday} {from your records|out of my profile}, {you have no \
            reason to keep it|not needed}
        {close|shut} my {account|profile} {for good|and wipe it}, {I won't shop here again|no hard feelings}
        {do you|does the app} {share|sell} my {details|location|usage} {with others|to partners}?
        {I withdraw|I take back} my consent {to tracking|to marketing|to the storing of my details}
        {unsubscribe link|opt-out button} {doesn't work|does nothing}, {take me off the mailing list|your \
            ads keep coming}
        {does the [device]|can the [device]} {listen|record} {all the time|what we say}, {and where does it \
            go|who can hear it}?
        {under the data protection rules|by law} you {must tell me|have a month to say} what you \
            {keep|know} {about me|}
        {my ex|somebody} {used|entered} my {email|name}, {I want it purged|please scrub it from your system}
        {how long|for how many years} do you {keep|hold on to} {old orders and names|recordings of calls}?
        {forget me|please forget me}{, all my data|: erase name, orders, the lot}
        {I see|it shows me} another person's {name and street|orders} in my profile, {that's a data \
            leak|can they see mine}?
        {your reviews page|website} shows my {full name|surname}, {take it down|make me anonymous}
        {I'm done|leaving for good}: {wipe|destroy} {my records|whatever you know about me} and confirm{ in \
            writing|}
        {no more|enough} {marketing mails|push ads|sms offers} {please|}, {order mails are fine|only the \
            ones about orders}
        {my son is 12|a minor registered}, {remove his profile|I object to you holding his details}
        {who is|how do I reach} your data protection officer?
        {where is|in which country is} my personal data {from the [device]|} stored? {I worry about who \
            looks at it|}
        {a caller knew|somebody phoned me knowing} what I {bought|ordered} from you, {was there a \
            breach|how did that get out}
        {delete|get rid of} {the card details|my saved card} {you store|in your system}, {I don't want them \
            kept|no permission for that}
        {can I|I want to} {export|download} my {history|readings|personal file}{, all years,|} {before|and \
            then have} {you erase it|it erased}
    """),
}

# What the customer asks for; ``*`` fits anything.
ASKS: dict[str, tuple[str, ...]] = {
    "*": lines("""
        {please|pls} {help|advise|look into it|sort this out}
        {what now|what can I do|what happens next}?
        {can you|could someone} {check|take a look|get back to me|help}?
        {let me know|tell me} {what you need from me|how we proceed|please}
        {I'd appreciate|hoping for} a {quick|short} {answer|reply}
        {please|kindly} {reply|answer} {today|by [day]|soon}
        {thanks for|grateful for} {any help|looking into it|your help}
        {how do we fix this|who takes care of this}?
        {is anyone reading this|anybody there}?
        {call me|ring me} {back|tomorrow} on [phone]
        {you can reach me|best reach me} at [email]
        {answer|write} to [email] {please|}
    """),
    "late_delivery": lines("""
        {please find it|find out where it is}
        {when will it come|give me a date}
        {do I have to keep waiting|how long now}?
    """),
    "refund_request": lines("""
        {just the money, thanks|money back, nothing else}
        {IBAN is on file|same card is fine}
    """),
    "faulty_device": lines("""
        {can it be repaired|send a technician}
        {do I post it in|is there a repair service}?
    """),
    "cancel_subscription": lines("""
        {confirm the end date|written confirmation please}
        {no offers to stay please|don't try to talk me into staying}
    """),
    "damaged_item": lines("""
        {please send a new one|I'd like an intact one}
        {photo attached|pictures follow}
    """),
    "setup_help": lines("""
        {a step by step would be great|simple words please}
        {what am I missing|which step did I skip}?
    """),
    "billing_error": lines("""
        {please correct that|put it right}
        {explain this to me|what is this}
    """),
    "password_reset": lines("""
        {just let me in|let me back in}
        {I only want to see my orders|need it today}
    """),
    "wrong_item": lines("""
        {please send the right one|I need the right one}
        {who collects this one|what do I do with this one}?
    """),
    "promo_code": lines("""
        {I'll order once it works|waiting to order}
        {would be nice to save a bit|every bit helps}
    """),
    "address_change": lines("""
        {before it ships, please|hope I'm not too late}
        {please confirm the new one|confirm you've noted it}
    """),
    "stock_question": lines("""
        {I'd order right away|would buy immediately}
        {a rough date is enough|roughly is fine}
    """),
    "invoice_copy": lines("""
        {pdf is fine|by mail or post, either}
        {books close on [day]|deadline is [date]}
    """),
    "privacy_request": lines("""
        {confirm when done|I expect confirmation}
        {I know my rights|that is my right}
    """),
}


# What people add that says nothing about the category.
FILLERS = lines("""
    {I've been|we have been} {a customer|with you} since {2017|2019|2021|2022}
    {it's for|I got it for} my {mother|brother|grandson|neighbour}
    {sorry|apologies} {if this is the wrong form|for the long mail|for my spelling, I'm on my phone}
    {I tried|tried} {calling|the hotline}, {twenty minutes of music|nobody picked up|the line dropped}
    {your chat bot|the bot} {didn't understand me|sent me in circles|was no help}
    {I'm writing|typing this} from {the train|my lunch break|hospital|a campsite}
    {my customer number is|customer no} [customer]
    {order number|my order is|it's} [order]
    {bought|ordered} on [date]
    {my kids|the grandchildren|my flatmates} {keep asking|are laughing at me|love your stuff}
    {second|third} {time I write|message}, {no reply so far|first one got no answer}
    {I'm not|I am no} {good with computers|a technical person|twenty anymore}
    {we're a small|I run a small} {cafe|office|guest house|nursery} in [city]
    {normally|usually} {all goes well with you|I have no complaints|your shop is great}
    {I like|we really like} your {shop|products|coffee} {otherwise|by the way|a lot}
    {I work nights|I'm at work until six}, so {mail is best|don't ring before noon}
    {my name is|this is} [name]{, we spoke on [day]|, customer for years|}
    {a colleague|my cousin|somebody at work} recommended {you|your shop}
    {I looked|looked} {through your help pages|at the questions page|everywhere}, {found nothing|no luck}
    {hope|I hope} {you had a nice weekend|all is well with you|it's not too busy there}
    {the weather is awful here|it's 35 degrees here|long day}, {so forgive my tone|so I'll keep it brief}
    {I had|there was} the same {question|conversation} with [agent] {from your team|on [day]}
    {my wife|my partner|my boss} {told me to write|says I should ask|is losing patience}
    {I paid|it was paid} {by card|with my card [card]|from my account}
    {it's|this is} about {the [thing]|my [thing]|the [device]}
    {this concerns|regarding} {[order]|the order from [day]|what I bought in [month]}
    {it's urgent|a bit urgent|no rush}
    {I'm leaving on [day]|we go on holiday [day]|I'm travelling from [date]}
    {I can be reached|call me back|you reach me} {on|under} [phone]{ after six|}
    {my mail is|mail for this account:|please answer to} [email]
""")

OPENINGS: dict[str, tuple[str, ...]] = {
    "plain": lines("""
        {hi|hello}
        hi there
        hey
        good {morning|evening}
    """),
    "polite": lines("""
        {dear|hello} Brindlecove team
        dear {sir or madam|support|customer service}
        good {morning|afternoon}
        hello {and good morning|everyone}
    """),
    "terse": lines("""
        hi
        hello
    """),
    "angry": lines("""
        {seriously|honestly|unbelievable}
        {this is ridiculous|what a joke|I've had it}
        {are you kidding me|not again|enough}
    """),
    "rambling": lines("""
        {hi it's me again|hello again|hi all}
        {so|ok so|well}
        hi, {long story|where do I start|bear with me}
    """),
    "nonnative": lines("""
        {hello dear team|dear friends|hello sirs}
        {good day|greetings}
        hello, {excuse my english|I try to explain}
    """),
}

CLOSINGS: dict[str, tuple[str, ...]] = {
    "plain": lines("""
        {thanks|cheers|thx}
        {thanks|cheers}, [first]
        [first]
    """),
    "polite": lines("""
        {kind|best|warm} regards, [name]
        {many thanks|thank you very much}, [name]
        {yours|yours sincerely|with thanks}, [name]
        {have a nice day|thanks for your time}
    """),
    "terse": lines("""
        thx
        [first]
    """),
    "angry": lines("""
        {I'm waiting|do something|fix it}
        {never again|worst service ever|I'll post a review}
        [name]{, very unhappy customer|}
    """),
    "rambling": lines("""
        {anyway thanks|well, that's it|sorry for going on}, [first]
        {all the best|greetings from [city]}, [name]
        {ok bye|right, that's all}
    """),
    "nonnative": lines("""
        {thank you in advance|thanks for understanding}{, [name]|}
        {with friendly greetings|many greetings}, [name]
        {I hope for answer|I wait for your kind answer}
    """),
}
