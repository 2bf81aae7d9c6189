//! Identities of the field and of its derivatives.
