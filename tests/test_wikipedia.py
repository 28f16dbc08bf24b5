"""Wikipedia dumps: what of a page is text, and which pages are articles."""

import bz2
from xml.sax.saxutils import escape

import pytest
from test_prepare import documents, make, texts

from rope_study.data.preparation import wikipedia
from rope_study.errors import UserError

pytest.importorskip("mwxml")
pytest.importorskip("mwparserfromhell")

HEADER = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo>
    <sitename>Wikipedia</sitename> <dbname>dewiki</dbname> <base>https://de.wikipedia.org/</base>
    <generator>MediaWiki 1.45</generator> <case>first-letter</case>
    <namespaces>
      <namespace key="0" case="first-letter" /> <namespace key="1" case="first-letter">Diskussion</namespace>
      <namespace key="6" case="first-letter">Datei</namespace>
      <namespace key="14" case="first-letter">Kategorie</namespace>
    </namespaces>
  </siteinfo>
"""  # noqa: E501


def page(title, text, namespace=0, redirect="", model="wikitext"):
    return f"""  <page>
    <title>{title}</title> <ns>{namespace}</ns> <id>1</id> {redirect}
    <revision>
      <id>2</id> <parentid>1</parentid> <timestamp>2026-01-01T00:00:00Z</timestamp>
      <contributor><username>A</username><id>3</id></contributor>
      <comment>/* x */ &lt;page&gt;</comment>
      <origin>2</origin> <model>{model}</model> <format>text/x-wiki</format>
      <text bytes="{len(text)}" sha1="x" xml:space="preserve">{escape(text)}</text> <sha1>x</sha1>
    </revision>
  </page>
"""


def dump(*pages):
    return bz2.compress((HEADER + "".join(pages) + "</mediawiki>\n").encode())


ARTICLE = """{{Short description|One}}
{{Infobox person
| name = Ada {{nowrap|Lovelace}}
| image = [[File:Ada.jpg|thumb|a portrait]]
}}
[[File:Ada.jpg|thumb|upright|Ada at [[Ockham Park|Ockham]] in {{circa|1840}}]]
'''Ada Lovelace''' was an [[England|English]] [[mathematician]]s' ''friend''.<ref name="a">{{cite
| title = Notes}} p.&nbsp;3</ref><ref name="b" /> She &ndash; &#x41; &amp; B &mdash; wrote.<!---->

== Life ==
* born in [[London]]
* see [https://example.org a page] and <nowiki>[[this]]</nowiki>

{| class="wikitable"
|-
! Year !! Event
|-
| 1843 || {{Dts|1843}} notes
|}

<gallery>
File:One.jpg|one
</gallery>
<math>e^{i \\pi}</math>H<sub>2</sub>O<br />next


== References ==
{{reflist}}
[[Category:Mathematicians]]
[[Kategorie:Frau]]
"""
PLAIN = """Ada Lovelace was an English mathematicians' friend. She \u2013 A & B \u2014 wrote.

Life
born in London
see a page and [[this]]

H2Onext

References"""


def test_an_article_is_what_is_read_of_it():
    hidden = ("file", "image", "category", "kategorie")
    assert wikipedia.plain_text(ARTICLE, hidden) == PLAIN
    for broken in ("[[a|b", "{{a|b", "<ref>a", "'''a", "{|\na", "[http://", "&#xzz;", "]]}}|}"):
        assert isinstance(wikipedia.plain_text(broken), str)
    assert wikipedia.plain_text("[[" * 500 + "x" + "]]" * 500).strip("[]") == "x"


def test_only_articles_of_a_dump_are_kept(tmp_path):
    articles = texts(30)
    pages = [
        page("Ada", ARTICLE),
        page("Lovelace", "#REDIRECT [[Ada]]", redirect='<redirect title="Ada" />'),
        page("Diskussion:Ada", "I think", namespace=1),
        page("Kategorie:Frau", "All of them", namespace=14),
        page("Ada/code", "body {}", model="css"),
        page("Nothing", "{{delete}}"),
        *(page(f"Page {i}", text) for i, text in enumerate(articles)),
    ]
    store = make(tmp_path, dump(*pages), "wiki-pages-articles.xml.bz2")
    found = documents(store.train) + documents(store.held_out)
    expected = [f"Page {i}\n\n{text}" for i, text in enumerate(articles)]
    assert sorted(found) == sorted([*expected, f"Ada\n\n{PLAIN}"])
    counts = store.index["counts"]
    skipped = {k.removeprefix("skipped: "): n for k, n in counts.items() if "skipped" in k}
    assert skipped == {"redirects": 1, "not articles": 3, "empty": 1}


def test_broken_pages_are_named_or_counted(tmp_path):
    good = [page(f"Page {i}", text) for i, text in enumerate(texts(30))]
    bad = page("Bad", "x").replace("<revision>", "<revision><what/>")
    content = dump(*good[:9], bad, *good[9:])
    with pytest.raises(UserError, match=r"record 10: no page of a dump .*what"):
        make(tmp_path, content, "wiki.xml.bz2")
    store = make(tmp_path, content, "wiki.xml.bz2", skip_bad=True)
    assert store.index["counts"]["documents"] == 30
    assert store.index["counts"]["skipped: not XML"] == 1

    cut = bz2.decompress(dump(*good))[:-300]
    with pytest.raises(UserError, match="record 30: the dump ends inside a page"):
        make(tmp_path, cut, "cut.xml", out="cut")
    latin = bz2.decompress(dump(*good)).replace(b"Document 5", b"caf\xe9")
    with pytest.raises(UserError, match="record 6: not UTF-8"):
        make(tmp_path, latin, "latin.xml", out="latin")
