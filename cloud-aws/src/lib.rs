//! What Epsilon asks of AWS: registry tokens, the scale group, the instance’s own metadata.
