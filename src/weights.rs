//! Importance log-weights and what is made of them.
