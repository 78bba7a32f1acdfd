"""The page of rationales, driven as a user would, with a real worker and a server that answers to order."""

from __future__ import annotations

import os
import sys

import pytest
from poolroom import RATIONALES, ROOT, pool_folder, user  # noqa: F401 - fixtures

from cers.pool import Pool

sys.path.append(str(ROOT / "Testing" / "rationale"))
from writerkit import always, echo, serving

KEY = "sk-planted-in-the-environment"
WRONG = "Texture: Hypointense by 99 %.\nBoundary: As measured.\nContext: As measured.\nSummary: A lesion."


class Writer:
    """The page and what a user sees of it. asked: the questions; answer: what is answered."""

    def __init__(self, user):
        self.user, self.host, self.page = user, user.host, user.control.rationales
        self.asked: list[str] = []
        self.answer = True
        self.page.confirm = lambda question: (self.asked.append(question), self.answer)[1]

    def wait(self) -> None:
        self.host.process(0.05)
        self.host.wait_for(lambda: not self.page.busy, 120, "the end of the work")
        self.user.settle()
        self.host.wait_for(lambda: not self.page.busy, 60, "the state")

    def press(self, button) -> None:
        assert button.enabled, button.text
        button.click()
        self.wait()

    def at(self, server, **more) -> None:
        """Fills the form for an endpoint."""
        page = self.page
        page.writer.setCurrentIndex(page.writer.findData("endpoint"))
        page.url.setText(server.url)
        page.model.setText(more.get("model", "model-x"))
        page.withPicture.setChecked(bool(more.get("picture")))
        page.key.setCurrentIndex(page.key.findData(more.get("key", "none")))
        page.parallel.setValue(1)

    @property
    def text(self) -> str:
        return self.page.result.plainText


@pytest.fixture
def writer(user, pool_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CERS_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("CERS_API_KEY", KEY)
    user.control.rationales.worker.stop()  # so that the next one inherits these
    user.choose(pool_folder)
    writer = Writer(user)
    for combo in (writer.page.writer, writer.page.scope, writer.page.key):
        combo.setCurrentIndex(0)
    for box in (writer.page.again, writer.page.overOthers, writer.page.overPersons):
        box.setChecked(False)
    user.page(RATIONALES)
    writer.wait()
    yield writer
    writer.page.worker.stop()
    for name in ("url", "model", "variable", "local"):
        user.host.qt.QSettings().remove("CERS/Writer/" + name)
    writer.page.confirm = writer.page._ask


def current(folder) -> dict[str, str]:
    with Pool.open(folder, read_only=True) as pool:
        return {i: r.writer for i, (_v, r) in pool.rationales(pool.ids()).items()}


def test_nothing_is_sent_without_consent(writer, pool_folder, screenshots):
    page = writer.page
    assert "measured 5" in page.state.text and "nothing is sent" in page.consents.currentText and not page.withdraw.enabled
    with serving(always(WRONG)) as server:
        writer.at(server, picture=True, key="environment")
        page.priceIn.setText("2,5")
        page.priceOut.setText("10")
        writer.press(page.preview)
        assert "Cases to write: 5." in writer.text and "Measured findings" in writer.text and server.url in writer.text
        assert "cost about" in writer.text and "not agreed" in writer.text and not page.picture.isHidden()
        writer.host.screenshot(writer.host.window, screenshots / "rationales_preview.png")
        writer.answer = False
        writer.press(page.start)
        assert "on this machine" in writer.asked[0] and "picture" in writer.asked[0] and "Nothing was sent" in writer.text
        assert server.connections == 0 and set(current(pool_folder).values()) == {"measured"}
        writer.answer, writer.asked = True, []
        writer.press(page.start)
        assert len(writer.asked) == 2 and len(server.bodies) == 5 and server.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert "Written: 5" in writer.text and "changed number (5)" in writer.text
        assert set(current(pool_folder).values()) == {"model-x"} and "model-x 5" in page.state.text
        writer.host.screenshot(writer.host.window, screenshots / "rationales_report.png")
        case_id = next(iter(current(pool_folder)))
        page._onLink(f"compare:{case_id}")
        writer.wait()
        assert "Now in the pool" in writer.text and "99 %" in writer.text, "the sentence that gave way is shown with the reason"
        writer.host.screenshot(writer.host.window, screenshots / "rationales_compare.png")
        page._onLink("report:")
        assert "Written: 5" in writer.text
        writer.press(page.start)
        assert "Cases to write: 0." in writer.text and len(server.bodies) == 5, "a second run does only what is missing"
        writer.press(page.log)
        assert writer.text.count(server.url) == 5 and "picture and findings" in writer.text
        assert server.url in page.consents.currentText
        writer.press(page.withdraw)
        assert "Withdrawn" in writer.text and "nothing is sent" in page.consents.currentText
        page.again.setChecked(True)
        writer.answer = False
        writer.press(page.start)
        page.again.setChecked(False)
        assert len(server.bodies) == 5
    for file in (*pool_folder.rglob("*"), *(pool_folder.parent / "config").rglob("*")):
        assert file.is_dir() or KEY.encode() not in file.read_bytes(), file


@pytest.mark.parametrize("again", [False, True])
def test_cancelled_batch_keeps_what_was_finished_and_goes_on(writer, pool_folder, again):
    page = writer.page
    page.again.setChecked(again)

    def script(number, handler):
        if number < 2:
            echo(number, handler)
        elif not server.gate.is_set():
            server.gate.wait(60)

    with serving(script) as server:
        writer.at(server, model="model-y")
        page.start.click()
        writer.host.wait_for(lambda: len(server.bodies) == 3, 60, "the third request")
        assert page.cancel.enabled and not page.cancel.isHidden() and not page.start.enabled
        page.cancel.click()
        writer.wait()
        assert "Written: 2" in writer.text and ("begins anew" if again else "goes on") in writer.text
        assert list(current(pool_folder).values()).count("model-y") == 2
        server.script = echo
        writer.press(page.start)
        assert len(server.bodies) == (8 if again else 6) and set(current(pool_folder).values()) == {"model-y"}


def test_what_is_wrong_is_said_in_a_sentence(writer, pool_folder):
    page = writer.page
    page.writer.setCurrentIndex(page.writer.findData("endpoint"))
    page.url.setText("")
    writer.press(page.preview)
    assert writer.text == "Write the address and the model's name."
    page.url.setText("ftp://x")
    page.model.setText("m")
    writer.press(page.preview)
    assert "web address" in writer.text
    page.url.setText("http://127.0.0.1:9/v1")
    page.key.setCurrentIndex(page.key.findData("environment"))
    assert not page.variable.isHidden()
    kept = writer.user.host.qt.QSettings()
    page.variable.setText("sk-proj-0123456789")  # the key itself, in the wrong field
    writer.press(page.preview)
    assert "never the key" in writer.text and "sk-proj" not in str([kept.value(k) for k in kept.allKeys()]), "not even in the settings"
    page.key.setCurrentIndex(0)
    writer.press(page.preview)
    page.writer.setCurrentIndex(page.writer.findData("measured"))
    writer.press(page.preview)
    assert kept.value("CERS/Writer/url") == "http://127.0.0.1:9/v1" and "sk-proj" not in str([kept.value(k) for k in kept.allKeys()])
    page.writer.setCurrentIndex(page.writer.findData("endpoint"))
    page.key.setCurrentIndex(page.key.findData("environment"))
    page.variable.setText("CERS_TEST_NOT_SET")
    writer.press(page.start)
    assert "CERS_TEST_NOT_SET is not set" in writer.text and not writer.asked, "without the key nothing is asked or sent"
    page.key.setCurrentIndex(0)
    writer.press(page.start)
    assert "Nothing answers at" in writer.text and "Traceback" not in writer.text
    page.writer.setCurrentIndex(page.writer.findData("local"))
    writer.press(page.preview)
    assert writer.text == "Choose a model."
    page.localModel.setText("/nowhere/model.gguf")
    writer.press(page.preview)
    assert "model" in writer.text and "Traceback" not in writer.text
    page.writer.setCurrentIndex(0)
    page.scope.setCurrentIndex(page.scope.findData("chosen"))
    writer.user.cases.view.clearSelection()
    writer.press(page.start)
    assert "table" in writer.text
    writer.user.cases.view.selectRow(0)
    page.again.setChecked(True)
    writer.press(page.start)
    assert "Written: 1" in writer.text


def test_texts_of_others_stay_or_are_asked_about(writer, pool_folder):
    from dataclasses import replace

    page, ids = writer.page, list(current(pool_folder))
    with Pool.open(pool_folder) as pool:
        for case_id, name in zip(ids, ("model-y", "model-y", "imported")):
            pool.add_rationale(case_id, replace(pool.get(case_id).rationale, writer=name))
        pool.edit_rationale(ids[3], {"summary": "Seen by me."}, who="Ana")
    before = current(pool_folder)
    writer.press(page.start)
    assert "Cases to write: 0." in writer.text and "others stay" in writer.text and "model-y 2, imported 1" in writer.text
    assert current(pool_folder) == before and not writer.asked
    page.overOthers.setChecked(True)
    page.overPersons.setChecked(True)
    writer.answer = False
    writer.press(page.start)
    assert "replaces 4 texts" in writer.asked[0] and "model-y 2" in writer.asked[0] and "Ana 1" in writer.asked[0]
    assert "Nothing was written" in writer.text and current(pool_folder) == before
    writer.answer = True
    writer.press(page.start)
    assert "Written: 4" in writer.text and set(current(pool_folder).values()) == {"measured"}


def test_a_table_is_tried_first(writer, pool_folder, tmp_path):
    ids = list(current(pool_folder))
    table = tmp_path / "texts.csv"
    table.write_text(f"case;texture;boundary;context;summary\n{ids[0]};Bright.;Sharp edge.;Alone.;A lesion.\nnobody;a;b;c;d\n", "utf-8")
    writer.page.askTable = lambda: str(table)
    writer.answer = False
    writer.press(writer.page.importTable)
    assert "would be added: 1 of 2. Rows without a case in this pool: 1." in writer.text and "Add one rationale?" in writer.asked[0]
    assert set(current(pool_folder).values()) == {"measured"}
    writer.answer = True
    writer.press(writer.page.importTable)
    assert "added: 1 of 2" in writer.text and current(pool_folder)[ids[0]] == "imported"
    assert "imported 1" in writer.page.state.text


def test_a_table_leaves_texts_of_others_unless_the_box_is_ticked(writer, pool_folder, tmp_path):
    from dataclasses import replace

    first = next(iter(current(pool_folder)))
    with Pool.open(pool_folder) as pool:
        pool.add_rationale(first, replace(pool.get(first).rationale, writer="model-y"))
    table = tmp_path / "texts.csv"
    table.write_text(f"case;texture;boundary;context;summary\n{first};Bright.;Sharp edge.;Alone.;A lesion.\n", "utf-8")
    writer.page.askTable = lambda: str(table)
    writer.press(writer.page.importTable)
    assert "added: 0 of 1" in writer.text and "stay unless you tick the box for them: model-y 1." in writer.text and not writer.asked
    writer.page.overOthers.setChecked(True)
    writer.press(writer.page.importTable)
    assert "added: 1 of 1" in writer.text and "give way: model-y 1." in writer.text and current(pool_folder)[first] == "imported"


def test_another_pool_ends_the_batch(writer, pool_folder, tmp_path):
    with Pool.create(tmp_path / "other"):
        pass
    with serving(lambda number, handler: server.gate.wait(60)) as server:
        writer.at(server)
        writer.page.start.click()
        writer.host.wait_for(lambda: len(server.bodies) == 1, 60, "the first request")
        writer.user.choose(tmp_path / "other")
        writer.wait()
    assert set(current(pool_folder).values()) == {"measured"} and writer.text == ""
    assert os.environ["CERS_API_KEY"] == KEY
