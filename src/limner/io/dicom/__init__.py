"""DICOM: images, segmentations and structure sets, one module each."""
