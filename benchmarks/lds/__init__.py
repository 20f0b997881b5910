"""Linear datamodelling score and counterfactual removal of attribution methods on fine-tunes of the shipped base."""
