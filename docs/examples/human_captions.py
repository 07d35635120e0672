"""COCO's first caption of each image as predictions, the other captions as references: what people score."""

import json
import sys

with open(sys.argv[1]) as file:
    coco = json.load(file)
first = {}
for annotation in coco["annotations"]:
    first.setdefault(annotation["image_id"], annotation)
others = [each for each in coco["annotations"] if each is not first[each["image_id"]]]
with open("human.json", "w") as file:
    json.dump([{"image_id": key, "caption": each["caption"]} for key, each in first.items()], file)
with open("others.json", "w") as file:
    json.dump({**coco, "annotations": others}, file)
