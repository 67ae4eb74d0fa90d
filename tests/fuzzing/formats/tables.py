"""CSV files: labels and boxes of an evaluation, and training data."""

from __future__ import annotations

import csv
import io
import random

from tests.fuzzing.driver import Format, nasty
from xaihub.evaluation.annotations import read_boxes, read_labels
from xaihub.training.data.sources import open_images

IMAGES = ["photos/a.png", "photos/b.png", "photos/cat/a.png"]


def _change(data: bytes, draw: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"))))
    for _ in range(draw.choice((1, 1, 3))):
        row = draw.choice(rows)
        value = draw.choice((str(nasty(draw)), "photos/a.png", "file", "1e400", "9" * 5000, "٣", "-0", "0x1", "1_0"))
        match draw.randrange(5):
            case 0:
                row.append(value)
            case 1:
                row.pop()
                row = row or rows[0]
            case 2:
                rows.append(list(draw.choice(rows)))
            case _ if row:
                row[draw.randrange(len(row))] = value
        rows = [row for row in rows if row] or [["file"]]
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, escapechar="\\").writerows(rows)
    return text.getvalue().encode(errors="replace")


FORMATS = (
    Format(
        name="labels csv",
        seeds=lambda: [
            b"file,class_index\nphotos/a.png,1\nb.png,2\n",
            b"\xef\xbb\xbffile,class_index,x\r\nb.png,0,q\r\n",
        ],
        change=_change,
        read=lambda file: read_labels(str(file), IMAGES),
        file="labels.csv",
    ),
    Format(
        name="boxes csv",
        seeds=lambda: [b"file,left,top,right,bottom\nb.png,1,2,3,4\nb.png,0,0,5,5\n"],
        change=_change,
        read=lambda file: read_boxes(str(file), IMAGES),
        file="boxes.csv",
    ),
    Format(
        name="training csv",
        seeds=lambda: [
            b"file,label,split\na.png,cat,train\nb.png,dog,val\nc.png,cat,test\n",
            b"path,class_index\na.png,0\nb.png,1\n",
        ],
        change=_change,
        read=lambda file: open_images(str(file)),
        file="data.csv",
    ),
)
