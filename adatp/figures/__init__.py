"""The paper's figures for any clip: where the model attends, and which tokens pruning keeps."""
