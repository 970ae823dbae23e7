"""Any traceable backbone cut into an AuxNet: tracing, cuts, heads of the right size, pretrained weights."""
