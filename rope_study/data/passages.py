"""Ten passages and six domains to probe a decoder with; all were written for this project.

Blank lines separate texts. Line ends inside them only keep this file narrow, but for the code.
"""

# ruff: noqa: RUF001 - Chinese has punctuation of its own.

PASSAGES = """
It's the miller's dog that's been at Anna's bread again. Anna didn't see it, but she'd know
those paws anywhere: they're on the step, they're on the table, and there's one on Anna's
apron. "We can't keep the window shut," she says. "He's learnt how it's opened, hasn't he?"

"Wasn't the boat due at ten o'clock?" asked Pavel. "It's never due," said Ruth, "it's only
expected." "By whom?" asked Pavel. "By you, Pavel, and by nobody else." "Then I'll wait till
eleven o'clock." "You said that yesterday," said Ruth, "and you said it at twelve o'clock."

Into the rucksack went: two maps, a tin of plums, Leo's whistle, Leo's other whistle, six
candles, a pencil, and a coat that wasn't his. Out of the rucksack came: one map, no plums,
Leo's whistle, six candles, and half a pencil. The coat, the other whistle and the second
map weren't seen again.

Bruno taught Clara, Clara taught Dario, and Dario, who'd forgotten where he'd learnt it,
taught Bruno. So Bruno's knot became Clara's knot, Clara's knot became Dario's knot, and
Dario's knot came home to Bruno. "That's odd," said Bruno to Clara. "Dario's knot isn't like
yours, but it's just like mine."

On 3 May 1908 the well measured 14.2 metres; on 3 May 1909, 13.9; on 3 May 1910, 13.9 again.
Between 1910 and 1934 nobody measured it. When it was opened on 17 June 1935, at 8:45 in the
morning, the rope ran out at 20 metres and hadn't touched the water.

The lighthouse (built in 1871, rebuilt in 1902) has one keeper (Mr Aldous), one cat (also, to
visitors' confusion, Mr Aldous) and two clocks (neither of them right). If you call for Mr
Aldous (and you'll have to, since the bell's broken), the cat comes first (it's faster on the
stairs).

The snow fell on the roofs; it fell on the carts, and the carts stood still; it fell on the
river, which didn't keep it; it fell on the dog, who did. By noon the square was white; by
dusk the steps were gone; by morning there wasn't a street left to sweep; and the sweeper,
whose broom it was, slept on.

The sign over the inn said "No singing after nine o'clock." Under it somebody'd chalked
"Who's singing?", and under that, in the landlord's hand, "You're singing." A third hand had
added "I'm not." By winter there were so many answers on the door that travellers couldn't
find the words "No singing", and sang.

Dear Mrs Quill, I've returned your ladder, your lamp and your brother's saw. I haven't
returned your brother, as he's still on my roof. He says that he won't come down until
Tuesday, 9 October, or until it's stopped raining. Please don't send the ladder back before
then. Yours, Edith Marlow

One step down is the kitchen, where it's warm. Two steps down is the cellar, where it's cold.
Three steps down is the tunnel, where it's dark. Four steps down, says Father, there isn't
anything; but I've counted the steps at night (one, two, three, four, five), and on the fifth
it's warm again.
"""


PROSE = """
The beekeeper's hut stood at the end of a lane that nobody mended. In summer the nettles
closed over it, and one found the door by the sound of the hives. In winter there was no
sound at all, and the postman left the letters under a stone.

When the piano was sold, the floor kept four small hollows where its feet had been. My
mother put a table there, then a plant, then nothing. Visitors walked around the empty
corner without knowing why, as people walk around someone who is asleep.

The bridge was closed for a year, and the two halves of the town forgot each other. Bread
was baked twice, quarrels were held twice, and there were two mayors. On the morning it was
opened again, both of them brought scissors.
"""

ITALIAN = """
Il treno delle sette era in ritardo e la stazione odorava di pioggia. Un ragazzo con un
violino contava le monete sul palmo della mano. Quando la locomotiva entrò sotto la tettoia,
nessuno si mosse: aspettavano tutti qualcun altro.

Mia zia teneva le lettere in una scatola di latta, sotto il letto. Non le rileggeva mai, ma
ogni primavera le metteva al sole perché non prendessero umidità. Diceva che anche le parole
hanno bisogno d'aria.

Per fare il pane ci vogliono farina, acqua, sale e pazienza. L'impasto deve riposare tutta
la notte. Se la mattina è raddoppiato, si accende il forno; se non lo è, si aspetta ancora
un'ora e si beve un altro caffè.
"""

GERMAN = """
Die Uhr am Rathaus ging seit dem Sommer falsch, aber niemand beschwerte sich. Man hatte sich
daran gewöhnt, zehn Minuten abzuziehen. Als der Uhrmacher sie endlich richtig stellte, kamen
am nächsten Morgen alle Kinder zu spät zur Schule.

Auf dem See lag dünnes Eis, und darunter sah man die Fische stehen. Mein Bruder wollte
hinübergehen, doch der Fährmann schüttelte den Kopf. Erst wenn das Eis nicht mehr singt,
sagte er, darf man ihm trauen.

Für die Reise brauchte sie nur wenig: einen Mantel, zwei Bücher, ein Messer und die Adresse
einer Freundin in Bremen. Den Schlüssel legte sie unter den Blumentopf. Sie wusste nicht, ob
sie zurückkommen würde, und es störte sie nicht.
"""

CHINESE = """
老钟表匠的店在巷子最里面。墙上挂着三十多只钟，每一只走得都不一样快。
有人问他现在几点，他总是先听一听，然后笑着说：“快到吃饭的时候了。”

春天的时候，妹妹在院子里种了一棵桃树。她每天早上给它浇水，晚上跟它说话。
第三年树开了花，妹妹却已经去城里上学了，只好在信里问：今年的桃子甜不甜？

渡船每天只开两次，早上一次，傍晚一次。船夫不爱说话，只收两块钱。
有一天下大雨，岸边只有我一个人，他还是按时开了船，说：“说好的时间，不能改。”
"""

CODE = (
    '''\
def shared_prefix(words):
    """The longest beginning that all words have in common."""
    if not words:
        return ""
    first, last = min(words), max(words)
    for i, letter in enumerate(first):
        if last[i] != letter:
            return first[:i]
    return first
''',
    """\
class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError(f"{self.owner} has only {self.balance}")
        self.balance -= amount
        return self.balance
""",
    """\
from collections import deque

def distances(graph, start):
    found = {start: 0}
    waiting = deque([start])
    while waiting:
        node = waiting.popleft()
        for neighbour in graph[node]:
            if neighbour not in found:
                found[neighbour] = found[node] + 1
                waiting.append(neighbour)
    return found
""",
)

ARITHMETIC = """
17 + 25 = 42. 42 + 25 = 67. 67 + 25 = 92. 92 - 17 = 75. 75 / 3 = 25. 25 * 4 = 100.
100 - 42 = 58. 58 + 67 = 125. 125 / 5 = 25. 25 - 17 = 8.

6 * 7 = 42, 6 * 8 = 48, 6 * 9 = 54, so 6 * 10 = 60. 16 * 7 = 112, 16 * 8 = 128,
16 * 9 = 144, so 16 * 10 = 160. 160 - 60 = 100.

(3 + 4) * 5 = 35; 3 + (4 * 5) = 23; (3 * 4) + 5 = 17; 3 * (4 + 5) = 27.
(8 - 2) * 6 = 36; 8 - (2 * 6) = -4; (8 * 2) - 6 = 10; 8 * (2 - 6) = -32.
"""
