from captioning.captioner.captioner import Captioner
from captioning.captioner.predict import generate_captions
from captioning.images.preprocessing import preprocess
from captioning.images.reading import load_image

captioner = Captioner.open("runs/shapes/model")
pixels = preprocess(load_image("photo.png"), captioner.config.preprocessing)
prediction = generate_captions(captioner, pixels[None], ["photo.png"])[0]
print(prediction.caption, prediction.logprob)
