//! **Move**: propose + accept on (state, target, stream); one file per move.
