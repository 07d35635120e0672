from captioning.metrics.evaluation import ReferenceSet, evaluate

references = ReferenceSet(
    {"1": ["a dog runs", "a brown dog is running"], "2": ["two boats", "boats at sea"]}, split_name="val"
)
predictions = {"1": "a dog is running", "2": "two boats at sea"}
evaluation = evaluate(references, predictions, split_name="val", search=None)
print("\n".join(evaluation.lines()))
