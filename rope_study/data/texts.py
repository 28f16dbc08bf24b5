"""Short texts to read a decoder with: ten passages, six domains, or the user's own.

All of them were written for this project. The passages have what the paper's heads look for
(Barbero et al. 2025, Figs. 5 to 7): apostrophes, quotations, lists, repeated names, numbers.
"""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from rope_study.errors import UserError, nearest

# ruff: noqa: RUF001 - Chinese has commas of its own.


def _paragraphs(block: str, joint: str = " ") -> tuple[str, ...]:
    """The texts of a block: a blank line is between two, a line end within one is `joint`."""
    return tuple(joint.join(text.split("\n")) for text in block.strip().split("\n\n"))


PASSAGES = _paragraphs("""
Mara's brother wouldn't say where he'd hidden the key. "It isn't yours," he told her, "and
it wasn't Grandma's either." Mara didn't argue. She'd seen him near the baker's old shed,
and she knew he couldn't keep a secret until Sunday, let alone until Grandma's birthday.

To mend the gate you will need: a hammer, four nails, a plank, some wire, and patience.
First, lift the gate. Second, set the plank under the lower hinge. Third, drive the nails,
one at each corner. Last of all, wind the wire three times around the post, and close the
gate gently.

Captain Orlo wrote to Captain Ines, and Captain Ines wrote back to Captain Orlo. Orlo's
letters were long; Ines's were short. When Orlo asked for forty barrels of water, Ines sent
forty-one. When Ines asked for news of the harbour, Orlo sent three pages about the weather
and none about the harbour.

The survey counted 1,204 herons in 2016, 1,187 in 2017 and 1,342 in 2018. Of the 1,342 birds
seen in 2018, 611 nested north of the river and 731 south of it. The cost came to 18.50
euros a nest, or about 0.7 percent of what the town spends on its 26 bridges.

"Who rang the bell?" asked the teacher. "I didn't," said Tomas. "I didn't," said Noor. "Then
it rang itself," said the teacher, "and it'll ring itself again if nobody tells me." Tomas
looked at Noor. Noor looked at the bell. "It was the wind's fault," said Noor at last, and
the class laughed.

A river does not hurry where it is deep. It turns stones over one by one, lays down sand
where the bank gives way, and takes the same sand up again in spring. What looks like rest
is slow work. After a thousand years the valley has the river's shape, and the river has the
valley's.

Dear neighbours, the stairs will be painted on Monday, Tuesday and Wednesday. Please don't
lean bicycles, ladders or prams against the wall on Monday, Tuesday or Wednesday. On
Thursday the paint will be dry. If it isn't dry on Thursday, we'll put up another note, and
the note will say Friday. Yours, the neighbours' committee.

The cook's apprentice had one rule: taste it. Taste the soup before the salt, taste the soup
after the salt, taste the salt. On the day the duke came, the apprentice tasted everything
twice, and there was nothing left for the duke but bread, an onion, and the apprentice's
apologies.

Lena can't find the red ball. She looks under the bed, but the red ball isn't under the bed.
She looks behind the door, but the red ball isn't behind the door. Then the dog comes in.
"Oh," says Lena, "that's where the red ball is!" The dog's tail wags, and the ball's no
longer red.

In section 3 we weigh the sample; in section 4 we heat it to 80 degrees; in section 5 we
weigh it again. If the second weight is below the first, water was lost. If it's above the
first, the scale's zero has moved, and sections 3 to 5 must be done again with the zero
checked between them.
""")

DOMAINS = {
    "prose": _paragraphs("""
The ferry left at six, half empty, and the gulls followed it as far as the last buoy. Nobody
on deck spoke. By the time the island rose out of the haze, the tea in the paper cups had
gone cold and the youngest passenger was asleep on a coil of rope.

Old houses keep their own time. A stair creaks an hour after someone has climbed it, a
window rattles before the wind arrives. My aunt said that you only had to listen, and she
listened so well that she was never once surprised by a visitor.

He planted the orchard in rows of seven because his father had, and pruned it in March
because his father had, and sold the apples to the same two merchants. Only the dog was new.
It slept under a different tree each night, as if it were counting them.
"""),
    "italian": _paragraphs("""
La mattina il mercato era già pieno di gente. Una donna vendeva limoni, pane e formaggio, e
gridava i prezzi come se cantasse. Mio nonno comprava sempre gli stessi tre limoni, poi si
sedeva all'ombra della chiesa e leggeva il giornale fino a mezzogiorno.

Non era facile trovare la strada di notte. Le luci del paese sembravano vicine, ma a ogni
curva si allontanavano di nuovo. Quando finalmente arrivammo, l'albergo era chiuso e il
portiere dormiva su una sedia davanti alla porta.

Il fiume cresce quando la neve si scioglie in montagna. I contadini lo sanno e spostano le
barche più in alto. Poi l'acqua scende, lascia sulla riva rami e sassi, e i bambini vanno a
cercare quello che il fiume ha portato.
"""),
    "chinese": _paragraphs(
        """
清晨的市场已经很热闹了。卖菜的老人把白菜和萝卜摆得整整齐齐，一边招呼客人，一边和邻居聊天。
我的奶奶每天都来，总是先问价钱，再慢慢地挑选，最后多要两根葱。

山里的路不好走，下雨以后更滑。我们走了三个小时才看见村子。村口有一棵大树，树下坐着几个孩子，
他们笑着跑过来，问我们从哪里来，要到哪里去。

冬天快到了，河面上结了一层薄薄的冰。渔夫把小船拉上岸，修补了渔网，又给门前的柴堆盖上了草。
他说，只要火不灭，冬天就不会太长。
""",
        joint="",
    ),
    "german": _paragraphs("""
Der Zug hatte wieder Verspätung, und auf dem Bahnsteig wurde es langsam dunkel. Ein Mann las
seine Zeitung zum zweiten Mal. Als die Lichter endlich hinter der Brücke auftauchten, stand
niemand auf, weil keiner mehr daran glaubte, dass es der richtige Zug war.

Im Garten hinter dem Haus wuchsen Bohnen, Möhren und ein alter Birnbaum, der seit Jahren
keine Früchte mehr trug. Meine Großmutter wollte ihn trotzdem nicht fällen lassen. Ein Baum
müsse nicht nützlich sein, sagte sie, er müsse nur stehen bleiben.

Wer früh am Morgen durch die Stadt geht, hört zuerst die Bäcker, dann die Straßenbahn und
schließlich die Schulkinder. Gegen neun Uhr wird es still. Dann gehört der Marktplatz den
Tauben und einem Straßenkehrer, der leise vor sich hin pfeift.
"""),
    "code": (
        """\
def running_mean(values, width):
    total, means = 0.0, []
    for i, value in enumerate(values):
        total += value
        if i >= width:
            total -= values[i - width]
        means.append(total / min(i + 1, width))
    return means
""",
        """\
class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()
""",
        """\
with open("words.txt") as file:
    counts = {}
    for line in file:
        for word in line.split():
            word = word.lower()
            counts[word] = counts.get(word, 0) + 1
for word in sorted(counts, key=counts.get, reverse=True)[:10]:
    print(word, counts[word])
""",
    ),
    "arithmetic": _paragraphs("""
12 + 7 = 19. 19 + 7 = 26. 26 + 7 = 33. 33 + 7 = 40. 40 - 12 = 28. 28 / 7 = 4. 4 * 12 = 48.
48 + 19 = 67. 67 - 33 = 34. 34 * 2 = 68.

3 * 4 = 12; 13 * 4 = 52; 23 * 4 = 92; 33 * 4 = 132; 43 * 4 = 172. 172 - 132 = 40; 132 - 92 =
40; 92 - 52 = 40; 52 - 12 = 40. 3 + 13 + 23 + 33 + 43 = 115; 115 * 4 = 460.

x = 5, y = 8: x + y = 13, x * y = 40, y - x = 3, 2 * x + y = 18. x = 6, y = 9: x + y = 15, x
* y = 54, y - x = 3, 2 * x + y = 21. x = 7, y = 10: x + y = 17, x * y = 70.
"""),
}

WHERE = '"default", "domains", the path of a text or JSONL file, or a list of texts'


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts to read, each with a label.

    Attributes:
      name: where they come from, for figures.
      texts: what to encode.
      labels: one a text; "" where it has none.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]

    def by_label(self) -> dict[str, list[str]]:
        """The texts of each label, labels in the order in which they first occur."""
        found: dict[str, list[str]] = {}
        for text, label in zip(self.texts, self.labels, strict=True):
            found.setdefault(label, []).append(text)
        return found


def load_texts(spec: str | os.PathLike | Sequence[str] = "default") -> Texts:
    """The texts that `spec` names.

    Args:
      spec: "default" for the ten passages; "domains" for three texts each of prose, Italian,
        Chinese, German, code and arithmetic, labelled; a file, .jsonl with {"text": ...} and
        perhaps {"label": ...} on each line, else one text a paragraph; or a list of texts.

    Raises:
      UserError: no such file, not UTF-8, a wrong line, or no text.
    """
    if isinstance(spec, str | os.PathLike):
        return _named(os.fspath(spec))
    if not isinstance(spec, Sequence) or not all(isinstance(text, str) for text in spec):
        raise UserError(f"texts={spec!r} are no texts. Allowed: {WHERE}")
    return _checked("list", [(text, "") for text in spec])


def _named(spec: str) -> Texts:
    if spec == "default":
        return _checked(spec, [(text, "") for text in PASSAGES])
    if spec == "domains":
        return _checked(spec, [(text, label) for label in DOMAINS for text in DOMAINS[label]])
    file = Path(spec).expanduser()
    if not file.is_file():
        raise UserError(
            f"texts={spec!r} is not a file.{nearest(spec, ['default', 'domains'])} Allowed: {WHERE}"
        )
    try:
        content = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"texts={spec!r} cannot be read as UTF-8 text ({error})") from error
    if file.suffix.lower() == ".jsonl":
        return _checked(file.name, _jsonl(content, spec))
    return _checked(file.name, [(text.strip(), "") for text in re.split(r"\n\s*\n", content)])


def _jsonl(content: str, spec: str) -> list[tuple[str, str]]:
    found = []
    # Not splitlines(): a JSON string may hold U+2028 and the like.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            text, label = entry["text"], entry.get("label", "")
            (text + label).encode()  # no string, or an escaped lone surrogate
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f'texts={spec!r}, line {number}: not of the form {{"text": "...", "label": "..."}}'
                f" ({type(error).__name__}: {error})"
            ) from error
        found.append((text, label))
    return found


def _checked(name: str, found: list[tuple[str, str]]) -> Texts:
    """Without what is only whitespace; refuses nothing at all."""
    found = [(text, label) for text, label in found if text.strip()]
    if not found:
        raise UserError(f"texts of {name!r}: there is none that is not empty. Allowed: {WHERE}")
    texts, labels = zip(*found, strict=True)
    return Texts(name, texts, labels)
