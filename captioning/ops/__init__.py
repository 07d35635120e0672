"""The mathematics that decoders share."""
