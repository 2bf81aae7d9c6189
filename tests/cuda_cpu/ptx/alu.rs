//! What instructions that only compute make of their operands.
//!
//! A register is 64 bits, of which an instruction sees as many as its type has, so what is above them does not count.

/// An instruction's function.
#[derive(Clone, Copy)]
pub enum Function {
    One(fn(u64) -> u64),
    Two(fn(u64, u64) -> u64),
    Three(fn(u64, u64, u64) -> u64),
    Four(fn(u64, u64, u64, u64) -> u64),
    /// Of three numbers and what the last such instruction carried; what it carries itself.
    Carrying(fn(u64, u64, u64, bool) -> (u64, bool)),
}
use Function::{Carrying, Four, One, Three, Two};

/// A register's contents as a number of a type.
trait Bits {
    fn of(bits: u64) -> Self;
    fn bits(self) -> u64;
}

macro_rules! bits_of_integers {
    ($($type:ty)*) => {$(
        impl Bits for $type {
            fn of(bits: u64) -> $type {
                bits as $type
            }
            fn bits(self) -> u64 {
                self as u64
            }
        }
    )*};
}
bits_of_integers!(u8 u16 u32 u64 i8 i16 i32 i64);

impl Bits for f32 {
    fn of(bits: u64) -> f32 {
        f32::from_bits(bits as u32)
    }
    fn bits(self) -> u64 {
        self.to_bits().into()
    }
}

impl Bits for f64 {
    fn of(bits: u64) -> f64 {
        f64::from_bits(bits)
    }
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

impl Bits for bool {
    fn of(bits: u64) -> bool {
        bits & 1 == 1
    }
    fn bits(self) -> u64 {
        self.into()
    }
}

macro_rules! one {
    ($type:ty, |$a:ident| $value:expr) => {
        One(|a| {
            let $a = <$type>::of(a);
            ($value).bits()
        })
    };
}
macro_rules! two {
    ($type:ty, |$a:ident, $b:ident| $value:expr) => {
        Two(|a, b| {
            let ($a, $b) = (<$type>::of(a), <$type>::of(b));
            ($value).bits()
        })
    };
}
macro_rules! three {
    ($type:ty, |$a:ident, $b:ident, $c:ident| $value:expr) => {
        Three(|a, b, c| {
            let ($a, $b, $c) = (<$type>::of(a), <$type>::of(b), <$type>::of(c));
            ($value).bits()
        })
    };
}

/// Instructions on integers of one type. Shifts by more than there are bits leave zeros, or signs.
macro_rules! integer {
    ($name:ident, $type:ty, $wide:ty) => {
        fn $name(operation: &str) -> Option<Function> {
            const BITS: u32 = <$type>::BITS;
            Some(match operation {
                "add" => two!($type, |a, b| a.wrapping_add(b)),
                "sub" => two!($type, |a, b| a.wrapping_sub(b)),
                "mul.lo" => two!($type, |a, b| a.wrapping_mul(b)),
                "mul.hi" => two!($type, |a, b| ((a as $wide * b as $wide) >> BITS) as $type),
                "mul.wide" => two!($type, |a, b| (a as $wide * b as $wide) as u64),
                "mad.lo" => three!($type, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
                "mad.wide" => {
                    Three(|a, b, c| ((<$type>::of(a) as $wide * <$type>::of(b) as $wide) as u64).wrapping_add(c))
                }
                "div" => two!($type, |a, b| a.checked_div(b).unwrap_or(!0)),
                "rem" => two!($type, |a, b| a.checked_rem(b).unwrap_or(!0)),
                "min" => two!($type, |a, b| a.min(b)),
                "max" => two!($type, |a, b| a.max(b)),
                "neg" => one!($type, |a| (0 as $type).wrapping_sub(a)),
                "not" => one!($type, |a| !a),
                "and" => two!($type, |a, b| a & b),
                "or" => two!($type, |a, b| a | b),
                "xor" => two!($type, |a, b| a ^ b),
                "clz" => one!($type, |a| a.leading_zeros()),
                "popc" => one!($type, |a| a.count_ones()),
                "brev" => one!($type, |a| a.reverse_bits()),
                "shl" => Two(|a, b| <$type>::of(a).checked_shl(b as u32).unwrap_or(0).bits()),
                "shr" => Two(|a, b| (<$type>::of(a) as $wide >> (b as u32).min(BITS)) as $type as u64),
                "setp.eq" => two!($type, |a, b| a == b),
                "setp.ne" => two!($type, |a, b| a != b),
                "setp.lt" | "setp.lo" => two!($type, |a, b| a < b),
                "setp.le" | "setp.ls" => two!($type, |a, b| a <= b),
                "setp.gt" | "setp.hi" => two!($type, |a, b| a > b),
                "setp.ge" | "setp.hs" => two!($type, |a, b| a >= b),
                _ => return None,
            })
        }
    };
}
integer!(of_u16, u16, u32);
integer!(of_u32, u32, u64);
integer!(of_u64, u64, u128);
integer!(of_i16, i16, i32);
integer!(of_i32, i32, i64);
integer!(of_i64, i64, i128);

/// Instructions on floating-point numbers, which `$of` and what comes out may make zero. Of a number and no number `min` and
/// `max` take the number. What a card computes approximately is rounded to the nearest here.
macro_rules! float {
    ($name:ident, $type:ty, $of:path) => {
        fn $name(operation: &str) -> Option<Function> {
            Some(match operation {
                "add" | "add.rn" => two!($type, |a, b| $of($of(a) + $of(b))),
                "sub" | "sub.rn" => two!($type, |a, b| $of($of(a) - $of(b))),
                "mul" | "mul.rn" => two!($type, |a, b| $of($of(a) * $of(b))),
                "div.rn" | "div.full" | "div.approx" => two!($type, |a, b| $of($of(a) / $of(b))),
                "fma.rn" => three!($type, |a, b, c| $of($of(a).mul_add($of(b), $of(c)))),
                "rcp.rn" | "rcp.approx" => one!($type, |a| $of(1.0 / $of(a))),
                "sqrt.rn" | "sqrt.approx" => one!($type, |a| $of(a).sqrt()),
                "rsqrt.approx" => one!($type, |a| 1.0 / $of(a).sqrt()),
                "sin.approx" => one!($type, |a| $of($of(a).sin())),
                "cos.approx" => one!($type, |a| $of($of(a).cos())),
                "lg2.approx" => one!($type, |a| $of(a).log2()),
                "ex2.approx" => one!($type, |a| $of($of(a).exp2())),
                "tanh.approx" => one!($type, |a| $of(a).tanh()),
                "neg" => one!($type, |a| -$of(a)),
                "abs" => one!($type, |a| $of(a).abs()),
                "min" => two!($type, |a, b| $of(a).min($of(b))),
                "max" => two!($type, |a, b| $of(a).max($of(b))),
                // the sign of the first on the second
                "copysign" => two!($type, |a, b| b.copysign(a)),
                "setp.eq" => two!($type, |a, b| $of(a) == $of(b)),
                "setp.ne" => two!($type, |a, b| $of(a).partial_cmp(&$of(b)).is_some_and(|order| order.is_ne())),
                "setp.lt" => two!($type, |a, b| $of(a) < $of(b)),
                "setp.le" => two!($type, |a, b| $of(a) <= $of(b)),
                "setp.gt" => two!($type, |a, b| $of(a) > $of(b)),
                "setp.ge" => two!($type, |a, b| $of(a) >= $of(b)),
                "setp.num" => two!($type, |a, b| !a.is_nan() && !b.is_nan()),
                "setp.nan" => two!($type, |a, b| a.is_nan() || b.is_nan()),
                // as those above, or where one is no number
                "setp.equ" => two!($type, |a, b| $of(a).partial_cmp(&$of(b)).is_none_or(|order| order.is_eq())),
                "setp.neu" => two!($type, |a, b| $of(a) != $of(b)),
                "setp.ltu" => two!($type, |a, b| $of(a).partial_cmp(&$of(b)).is_none_or(|order| order.is_lt())),
                "setp.leu" => two!($type, |a, b| $of(a).partial_cmp(&$of(b)).is_none_or(|order| order.is_le())),
                "setp.gtu" => two!($type, |a, b| $of(a).partial_cmp(&$of(b)).is_none_or(|order| order.is_gt())),
                "setp.geu" => two!($type, |a, b| $of(a).partial_cmp(&$of(b)).is_none_or(|order| order.is_ge())),
                _ => return None,
            })
        }
    };
}
float!(of_f32, f32, std::convert::identity);
float!(of_flushed_f32, f32, flushed);
float!(of_f64, f64, std::convert::identity);

fn of_predicate(operation: &str) -> Option<Function> {
    Some(match operation {
        "and" => two!(bool, |a, b| a & b),
        "or" => two!(bool, |a, b| a | b),
        "xor" => two!(bool, |a, b| a ^ b),
        "not" => one!(bool, |a| !a),
        _ => return None,
    })
}

/// A product and a sum of f32, rounded down or towards zero: a sum of two f64 and what it lacks are exact.
fn rounded(product: f64, c: f64, towards_zero: bool) -> f32 {
    let sum = product + c;
    let (of_product, of_c) = (sum - c, sum - (sum - c));
    let lacks = (product - of_product) + (c - of_c);
    let nearest = sum as f32;
    let rest = (sum - f64::from(nearest)) + lacks;
    match towards_zero && sum < 0.0 {
        true if rest > 0.0 => nearest.next_up(),
        false if rest < 0.0 => nearest.next_down(),
        _ => nearest,
    }
}

/// A subnormal number is zero.
fn flushed(a: f32) -> f32 {
    if a.is_subnormal() {
        0_f32.copysign(a)
    } else {
        a
    }
}

/// Of the mantissa ten bits, to the nearest, ties away from zero.
fn to_tf32(a: f32) -> u32 {
    match a.is_finite() {
        true => (a.to_bits() + 0x1000) & !0x1fff,
        false => a.to_bits(),
    }
}

/// The smallest number of half precision that is not below.
fn to_half_upwards(a: f32) -> u16 {
    const LARGEST: f64 = 65504.0;
    let (a, sign) = (f64::from(a), if a.is_sign_negative() { 0x8000 } else { 0 });
    if a.is_nan() {
        return 0x7fff;
    }
    // of subnormal numbers, and zero, the exponent is that of the smallest others
    let exponent = ((a.to_bits() >> 52 & 0x7ff) as i32 - 1023).clamp(-14, 15);
    let units = (a / 2_f64.powi(exponent - 10)).ceil().abs();
    match a.abs() > LARGEST {
        true if a > 0.0 || a.is_infinite() => sign | 0x7c00,
        true => sign | 0x7bff,
        // a mantissa that has become too long is the next exponent
        false => sign + ((exponent + 14) << 10) as u16 + units as u16,
    }
}

fn of_half(bits: u16) -> f32 {
    let (sign, exponent, mantissa) =
        (if bits >> 15 == 1 { -1.0 } else { 1.0 }, i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    sign * match exponent {
        0 => mantissa * 2_f32.powi(-24),
        31 if mantissa == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + mantissa) * 2_f32.powi(exponent - 25),
    }
}

/// Of a number of 64 bits.
const UPPER: u64 = !0xffff_ffff;

/// The upper half of a reciprocal, of the upper half of a number.
fn coarse_reciprocal(a: u64) -> u64 {
    let a = f64::from_bits(a & UPPER);
    let reciprocal = 1.0 / a;
    match a.is_subnormal() || reciprocal.is_subnormal() {
        true => if a.is_subnormal() { f64::INFINITY } else { 0.0 }.copysign(a).to_bits(),
        false => reciprocal.to_bits() & UPPER,
    }
}

/// The upper half of the reciprocal of a root, of the upper half of a number.
fn coarse_reciprocal_root(a: u64) -> u64 {
    let a = f64::from_bits(a & UPPER);
    let root = if a.is_subnormal() { 0_f64.copysign(a) } else { a }.sqrt();
    (1.0 / root).to_bits() & UPPER
}

/// Bits of a, in the place of so many of b.
fn insert(a: u64, b: u64, position: u64, length: u64, bits: u64) -> u64 {
    let (position, length) = ((position & 0xff).min(bits), (length & 0xff).min(bits));
    let mask = (((1_u128 << length) - 1) << position) as u64;
    (b & !mask) | (((u128::from(a) << position) as u64) & mask)
}

/// So many bits of a, from a place on.
fn extract(a: u64, position: u64, length: u64) -> u64 {
    let mask = (1_u128 << (length & 0xff).min(64)) - 1;
    a.checked_shr((position & 0xff) as u32).unwrap_or(0) & mask as u64
}

/// Bytes of a and b as four numbers of four bits choose them.
fn permute(a: u64, b: u64, choice: u64) -> u64 {
    let bytes = (a & 0xffff_ffff | b << 32).to_le_bytes();
    let of = |i: usize| {
        let choice = choice >> (4 * i);
        let byte = bytes[(choice & 7) as usize];
        // its sign alone
        if choice & 8 == 0 {
            byte
        } else {
            ((byte as i8) >> 7) as u8
        }
    };
    u32::from_le_bytes([of(0), of(1), of(2), of(3)]).into()
}

/// Two numbers of 16 bits by the lower two of four bytes, added to c.
fn dot(a: u64, b: u64, c: u64) -> u64 {
    let product = |i: u64| (a >> (16 * i) & 0xffff) * (b >> (8 * i) & 0xff);
    ((c & 0xffff_ffff) + product(0) + product(1)) & 0xffff_ffff
}

/// A number of one type as one of another, by name. What is too large for an integer is its largest.
macro_rules! as_type {
    ($to:expr, $of:ty, $number:expr) => {
        Some(match $to {
            "u8" => One(|a| ($number(<$of>::of(a)) as u8).bits()),
            "u16" => One(|a| ($number(<$of>::of(a)) as u16).bits()),
            "u32" => One(|a| ($number(<$of>::of(a)) as u32).bits()),
            "u64" => One(|a| ($number(<$of>::of(a)) as u64).bits()),
            "s8" => One(|a| ($number(<$of>::of(a)) as i8).bits()),
            "s16" => One(|a| ($number(<$of>::of(a)) as i16).bits()),
            "s32" => One(|a| ($number(<$of>::of(a)) as i32).bits()),
            "s64" => One(|a| ($number(<$of>::of(a)) as i64).bits()),
            "f32" => One(|a| ($number(<$of>::of(a)) as f32).bits()),
            "f64" => One(|a| ($number(<$of>::of(a)) as f64).bits()),
            _ => return None,
        })
    };
}

macro_rules! of_float {
    ($name:ident, $type:ident, $of:path) => {
        fn $name(rounding: &str, to: &str) -> Option<Function> {
            match (rounding, to) {
                ("", "f64") | ("rn", "f32") => as_type!(to, $type, $of),
                ("rni", _) => as_type!(to, $type, |a: $type| $of(a).round_ties_even()),
                ("rzi", _) => as_type!(to, $type, |a: $type| $of(a).trunc()),
                ("rmi", _) => as_type!(to, $type, |a: $type| $of(a).floor()),
                ("rpi", _) => as_type!(to, $type, |a: $type| $of(a).ceil()),
                _ => None,
            }
        }
    };
}
of_float!(convert_f32, f32, std::convert::identity);
of_float!(convert_flushed_f32, f32, flushed);
of_float!(convert_f64, f64, std::convert::identity);

/// `[ROUNDING.][ftz.]TO.FROM`
fn convert(conversion: &str) -> Option<Function> {
    let mut parts = conversion.rsplit('.');
    let (from, to) = (parts.next()?, parts.next()?);
    let mut rounding = parts.next().unwrap_or("");
    let flushes = rounding == "ftz";
    if flushes {
        rounding = parts.next().unwrap_or("");
    }
    match from {
        "f32" if flushes => return convert_flushed_f32(rounding, to),
        "f64" if flushes && rounding == "rn" => return Some(one!(f64, |a| flushed(a as f32))),
        "f32" => return convert_f32(rounding, to),
        "f64" => return convert_f64(rounding, to),
        _ if parts.next().is_some() || rounding != if to.starts_with('f') { "rn" } else { "" } => return None,
        _ => (),
    }
    match from {
        "u8" => as_type!(to, u8, |a| a),
        "u16" => as_type!(to, u16, |a| a),
        "u32" => as_type!(to, u32, |a| a),
        "u64" => as_type!(to, u64, |a| a),
        "s8" => as_type!(to, i8, |a| a),
        "s16" => as_type!(to, i16, |a| a),
        "s32" => as_type!(to, i32, |a| a),
        "s64" => as_type!(to, i64, |a| a),
        _ => None,
    }
}

/// Arithmetic on 32 bits in parts of longer numbers.
fn carrying(operation: &str) -> Option<Function> {
    fn sum(a: u64, b: u64, carry: bool) -> (u64, bool) {
        let sum = (a & 0xffff_ffff) + (b & 0xffff_ffff) + u64::from(carry);
        (sum & 0xffff_ffff, sum >> 32 != 0)
    }
    fn difference(a: u64, b: u64, borrow: bool) -> (u64, bool) {
        let difference = (a & 0xffff_ffff).wrapping_sub(b & 0xffff_ffff).wrapping_sub(borrow.into());
        (difference & 0xffff_ffff, difference >> 32 != 0)
    }
    fn product(a: u64, b: u64) -> u64 {
        (a & 0xffff_ffff) * (b & 0xffff_ffff)
    }
    Some(match operation {
        "add" => Carrying(|a, b, _, _| sum(a, b, false)),
        "addc" => Carrying(|a, b, _, carry| sum(a, b, carry)),
        "sub" => Carrying(|a, b, _, _| difference(a, b, false)),
        "subc" => Carrying(|a, b, _, borrow| difference(a, b, borrow)),
        "mad.lo" => Carrying(|a, b, c, _| sum(product(a, b), c, false)),
        "madc.lo" => Carrying(|a, b, c, carry| sum(product(a, b), c, carry)),
        "mad.hi" => Carrying(|a, b, c, _| sum(product(a, b) >> 32, c, false)),
        "madc.hi" => Carrying(|a, b, c, carry| sum(product(a, b) >> 32, c, carry)),
        _ => return None,
    })
}

/// Those that have no others beside them.
fn special(opcode: &str) -> Option<Function> {
    Some(match opcode {
        "fma.rm.f32" => three!(f32, |a, b, c| rounded(f64::from(a) * f64::from(b), c.into(), false)),
        "add.rz.f32" => two!(f32, |a, b| rounded(a.into(), b.into(), true)),
        "rcp.approx.ftz.f64" => One(coarse_reciprocal),
        "rsqrt.approx.ftz.f64" => One(coarse_reciprocal_root),
        "cvt.f32.f16" => one!(u16, |a| of_half(a)),
        "cvt.rp.f16.f32" => one!(f32, |a| to_half_upwards(a)),
        "cvt.sat.f32.f32" => one!(f32, |a| if a > 0.0 { a.min(1.0) } else { 0.0 }),
        // the place of the highest bit, by a shift that makes it the first
        "bfind.shiftamt.u32" => one!(u32, |a| if a == 0 { u32::MAX } else { a.leading_zeros() }),
        "bfi.b32" => Four(|a, b, position, length| insert(a, b, position, length, 32)),
        "bfi.b64" => Four(|a, b, position, length| insert(a, b, position, length, 64)),
        "bfe.u32" => Three(|a, position, length| extract(a & 0xffff_ffff, position, length)),
        "bfe.u64" => Three(extract),
        // the upper half of two words, or the lower one
        "shf.l.wrap.b32" => Three(|a, b, by| ((a & 0xffff_ffff | b << 32) << (by & 31)) >> 32),
        "shf.r.wrap.b32" => Three(|a, b, by| (a & 0xffff_ffff | b << 32) >> (by & 31) & 0xffff_ffff),
        "prmt.b32" => Three(permute),
        "dp2a.lo.u32.u32" => Three(dot),
        "cvt.rna.tf32.f32" => one!(f32, |a| to_tf32(a)),
        _ => return None,
    })
}

/// By an operation and the type of its operands.
fn of_type(operation: &str, of: &str) -> Option<Function> {
    match of {
        "u16" | "b16" => of_u16(operation),
        "u32" | "b32" => of_u32(operation),
        "u64" | "b64" => of_u64(operation),
        "s16" => of_i16(operation),
        "s32" => of_i32(operation),
        "s64" => of_i64(operation),
        "f32" => match operation.strip_suffix(".ftz") {
            Some(operation) => of_flushed_f32(operation),
            None => of_f32(operation),
        },
        "f64" => of_f64(operation),
        "pred" => of_predicate(operation),
        _ => None,
    }
}

/// Copies and choices, whatever their type.
fn moves(opcode: &str) -> Option<Function> {
    match opcode.split('.').next()? {
        "mov" => Some(One(|a| a)),
        "selp" => Some(Three(|a, b, of| if bool::of(of) { a } else { b })),
        _ => None,
    }
}

/// The function of an opcode with its modifiers and types.
pub fn find(opcode: &str) -> Option<Function> {
    let (operation, of) = opcode.rsplit_once('.')?;
    if let Some(conversion) = opcode.strip_prefix("cvt.") {
        return special(opcode).or_else(|| convert(conversion));
    }
    if let (Some(operation), "u32" | "s32") = (operation.strip_suffix(".cc"), of) {
        return carrying(operation);
    }
    if let ("addc" | "subc" | "madc.lo" | "madc.hi", "u32" | "s32") = (operation, of) {
        return carrying(operation);
    }
    moves(opcode).or_else(|| special(opcode)).or_else(|| of_type(operation, of))
}
