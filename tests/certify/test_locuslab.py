"""Logs of locuslab/smoothing: both kinds, both ways to write time, rounding, and what is refused."""

import math

import numpy as np
import pytest

from twinslib.base.certified import Certified, average_radius, certified_accuracy
from twinslib.certify.locuslab import read_log, round_down, write_log

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
CLOCK = HEADER + "0\t3\t-1\t0.0\t0\t0:00:13.736080\n20\t7\t7\t0.0734\t1\t1:02:03\n2940\t3\t0\t0.457\t0\t1 day, 0:00:01.5\n"
SECONDS = HEADER + "0\t3\t3\t0.378\t1\t15.4\n20\t7\t-1\t0.0\t0\t15.6\n7720\t5\t2\t0.00494\t0\t17\n"
PREDICT = HEADER.replace("radius\t", "") + \
    "0\t0\t0\t1\t0:00:01.737771\n200\t4\t395\t0\t0:00:00.149257\n1600\t32\t-1\t0\t0:00:00.150587\n"


@pytest.fixture
def log(tmp_path):
    def write(text):
        (tmp_path / "log").write_text(text)
        return tmp_path / "log"

    return write


def test_reads_all_forms(log):
    """Rows of CERTIFY with either time, and of PREDICT, whose radii are NaN."""
    clock, seconds, predict = (read_log(log(text)) for text in (CLOCK, SECONDS, PREDICT))
    assert clock.index.tolist() == [0, 20, 2940] and clock.prediction.tolist() == [-1, 7, 0]
    assert clock.radius.tolist() == [0, 0.0734, 0.457] and clock.correct.tolist() == [False, True, False]
    assert clock.seconds == pytest.approx([13.73608, 3723, 86401.5])
    assert seconds.seconds.tolist() == [15.4, 15.6, 17] and seconds.radius.tolist() == [0.378, 0, 0.00494]
    assert predict.prediction.tolist() == [0, 395, -1] and np.isnan(predict.radius).all() and predict.seconds[1] == 0.149257
    assert average_radius(seconds).estimate == pytest.approx(0.126)
    assert certified_accuracy(clock, [0, 0.08])[0].accuracy == pytest.approx(1 / 3)


@pytest.mark.parametrize("text", [CLOCK.replace("1:02:03", "1:02:03.000000").replace("1 day, 0:00:01.5", "24:00:01.500000"),
                                  PREDICT])
def test_writes_what_it_read(log, tmp_path, text):
    """Byte for byte, but for days, which become hours; in the older form seconds, one digit after the point."""
    write_log(tmp_path / "new" / "copy", read_log(log(text)))
    assert (tmp_path / "new" / "copy").read_text() == text
    write_log(tmp_path / "copy", read_log(log(SECONDS)), time_format="seconds")
    assert (tmp_path / "copy").read_text() == SECONDS.replace("\t17\n", "\t17.0\n")


def reshaped(text, change):
    """The log with each line's fields, header and all, put through `change`."""
    return "\n".join("\t".join(change(line.split("\t"), i)) for i, line in enumerate(text.splitlines())) + "\n"


TRUE = {"0": "False", "1": "True"}


@pytest.mark.parametrize("change", [
    lambda f, i: [*f[:3], "-3" if i else "basePredict", *f[3:]],  # SmoothAdv: the answer of the network itself
    lambda f, i: [*f[:-2], TRUE[f[-2]] if i else f[-2], f[-1]],
    lambda f, i: [*f[:-1], "any text" if i else "note", f[-1], "" if i else "sigma"],
    lambda f, i: f[::-1],
], ids=["basePredict", "True and False", "more columns", "another order"])
@pytest.mark.parametrize("text", [CLOCK, PREDICT], ids=["certify", "predict"])
def test_descendants_are_read_by_the_names_of_columns(log, text, change):
    """The same rows as without what they add."""
    plain, other = read_log(log(text)), read_log(log(reshaped(text, change)))
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(plain[:5], other[:5], strict=True))


def test_radii_are_never_rounded_up():
    """For 20,000 radii of all sizes: read back at most what it was, and less than one in a hundred below."""
    rng = np.random.default_rng(0)
    short, below = np.round(rng.random(500), 3), np.nextafter(np.arange(1, 9) / 4, 0)
    for radius in (*10.0 ** rng.uniform(-6, 3, 20_000), *short, *below):
        text = round_down(radius)
        assert float(text) <= radius <= float(text) * 1.0101
        assert len(text.replace(".", "").strip("0")) <= 3
    assert [round_down(r) for r in (0.75, 0.7499999, 0.0, 0.63, 1.0, 2.499, 12.34, 1234.5, 0.000012345)] == [
        "0.75", "0.749", "0.0", "0.63", "1.0", "2.49", "12.3", "1230.0", "0.0000123"]
    assert all(float(round_down(radius)) == radius for radius in short)
    assert [round_down(radius) for radius in below[:4]] == ["0.249", "0.499", "0.749", "0.999"]
    assert round_down(math.pi, 6) == "3.14159"


def test_an_image_just_below_a_radius_does_not_count(tmp_path):
    """0.74996 prints as 0.75 in the logs of others and as 0.749 in ours; `lower` undoes the first."""
    one = Certified(*(np.array([v]) for v in (0, 1, 1, 0.74996, 2.0)))
    write_log(tmp_path / "log", one)
    assert "\t0.749\t" in (tmp_path / "log").read_text()
    assert certified_accuracy(read_log(tmp_path / "log"), [0.75])[0].accuracy == 0
    (tmp_path / "log").write_text(CLOCK.replace("0.0734", f"{one.radius[0]:.3}"))
    for lower, right in ((False, 1 / 3), (True, 0)):
        assert certified_accuracy(read_log(tmp_path / "log", lower=lower), [0.75])[0].accuracy == pytest.approx(right)


@pytest.mark.parametrize("text", ["0.378", "0.63", "0.1", "1.0", "3.9", "0.00316", "0.999"])
def test_lower_is_the_end_of_what_rounds_there(log, text):
    """The least number that prints as the entry: just above it prints so, just below it does not."""
    low = read_log(log(SECONDS.replace("0.378", text)), lower=True).radius[0]
    assert f"{low * (1 + 1e-9):.3}" == f"{float(text):.3}" != f"{low * (1 - 1e-9):.3}"


def test_another_sigma_or_alpha_is_noticed(log):
    """.978 at sigma .25 needs alpha .01: the slip in the logs that locuslab ships; .457 at sigma .12 is within .001."""
    text = SECONDS.replace("0.378", "0.978")
    with pytest.raises(ValueError, match=r"at most 0.9528 \(sigma 0.25, n 100000, alpha 0.001\), got 0.978 in line 2 of log"):
        read_log(log(text), sigma=0.25, n=100_000)
    assert read_log(log(text), sigma=0.25, n=100_000, alpha=0.01).radius[0] == 0.978
    assert read_log(log(CLOCK), sigma=0.12, n=100_000).radius[2] == 0.457
    assert read_log(log(text.replace("0.978", "0.953")), sigma=0.25, n=100_000).radius[0] == 0.953  # .95286, to the nearest
    with pytest.raises(ValueError, match="of another sigma, n or alpha"):
        read_log(log(CLOCK), sigma=0.12, n=10_000)
    with pytest.raises(ValueError, match="sigma and n, or neither"):
        read_log(log(CLOCK), sigma=0.12)
    with pytest.raises(ValueError, match="n of at least 10 at alpha 0.001, got 9: even if all votes agree"):
        read_log(log(CLOCK), sigma=0.12, n=9)
    with pytest.raises(ValueError, match=r"\[0, 1\] pixel units\), got 30.6; write 30.6/255"):
        read_log(log(CLOCK), sigma=30.6, n=100_000)


def test_running_total_is_noticed(log):
    """A column `correct` that adds up is refused, and recomputed on request."""
    text = SECONDS.replace("\t0\t15.6", "\t1\t15.6").replace("\t0\t17", "\t1\t17")
    with pytest.raises(ValueError, match="correct to be 0 in line 3 of log, got 1; .* recompute=True"):
        read_log(log(text))
    assert read_log(log(text), recompute=True).correct.tolist() == [True, False, False]
    assert read_log(log(text.replace("\t1\t", "\t0.5\t")), recompute=True).correct.tolist() == [True, False, False]


@pytest.mark.parametrize(("text", "message"), [
    ("", "got 'an empty file'|an empty file"), ("idx label\n1 2\n", "separated by tabs and each once in the first line"),
    (SECONDS.replace("predict", "basePredict"), "each once in the first line of log, got .*basePredict"),
    (SECONDS.replace("radius", "label"), "each once in the first line"),
    (SECONDS.replace("\ttime", ""), "each once in the first line"),
    (PREDICT.replace("\t1\t", "\tyes\t"), "numbers in line 2"),
    (PREDICT.replace("\t1\t", "\tFalse\t"), "correct to be 1 in line 2 of log, got 0"),
    (SECONDS[:-8], "6 fields in line 4 of log, got 4; delete a line that was cut off"),
    (SECONDS + "20\t7\t-1\t0.0\t0\t15.6\n", "idx 20 in line 3 and line 5 of log; two logs are mixed"),
    (SECONDS.replace("0.378", "nan"), "numbers in line 2"),
    (SECONDS.replace("0.378", "-0.378"), "radius of at least 0, in line 2"), (SECONDS.replace("0.378", "inf"), "line 2"),
    (SECONDS.replace("-1\t0.0", "-1\t0.2"), "-1 with radius 0"), (SECONDS.replace("15.4", "soon"), "numbers in line 2"),
    (SECONDS.replace("\t3\t3", "\tcat\t3"), "numbers in line 2"),
])
def test_refused(log, text, message):
    """A log that is cut, doubled or of another format, with the line."""
    with pytest.raises(ValueError, match=message):
        read_log(log(text))


def test_needs_labels_and_a_known_time(tmp_path):
    """Nothing is written without labels, nor with an unknown form of time."""
    one = Certified(*(np.array([v]) for v in (0, -1, 1, 0.5, 2.0)))
    with pytest.raises(ValueError, match="a label for each image"):
        write_log(tmp_path / "log", one)
    with pytest.raises(ValueError, match="time_format to be one of clock, seconds"):
        write_log(tmp_path / "log", one._replace(label=np.array([1])), time_format="hours")
    with pytest.raises(FileNotFoundError):
        read_log(tmp_path / "log")
    assert not list(tmp_path.glob("*log*"))
