//! `.xtc` files: positions of the frames. Their contents are read by [`crate::io::trajectory`].

use super::{walk, Span};

/// Magic numbers: with 1995 the size of the packed coordinates has 32 bits, with 2023 64.
const MAGIC: [i32; 2] = [1995, 2023];

/// Number of packed sizes in the format's table.
const SIZES: i32 = 73;

pub(super) fn spans(bytes: &[u8]) -> Result<Vec<Span>, String> {
    walk(bytes, 0, |reader| {
        let magic = reader.i32()?;
        if !MAGIC.contains(&magic) {
            return Err("not an .xtc frame".into());
        }
        let (_, step) = (reader.i32()?, reader.i32()?);
        reader.take(4 + 9 * 4)?; // time, box
        let atoms = reader.size("number of atoms")?;
        if atoms <= 9 {
            reader.take(12 * atoms)?; // not packed
        } else {
            reader.take(4)?; // precision
            let mut corner = || Ok::<_, String>([reader.i32()?, reader.i32()?, reader.i32()?]);
            let (smallest, largest) = (corner()?, corner()?);
            if smallest.iter().zip(&largest).any(|(smallest, largest)| smallest > largest) {
                return Err(format!("invalid range of coordinates: {smallest:?} to {largest:?}"));
            }
            let size = reader.i32()?;
            if !(0..SIZES).contains(&size) {
                return Err(format!("invalid size of packed coordinates: {size}"));
            }
            let packed = if magic == MAGIC[0] { i64::from(reader.i32()?) } else { reader.i64()? };
            let packed = usize::try_from(packed).ok().filter(|p| *p <= isize::MAX as usize - 3);
            let packed = packed.ok_or("a size is out of range")?;
            if packed < atoms / 8 {
                return Err(format!("{packed} bytes are too few for {atoms} atoms"));
                // a bit each at least
            }
            reader.take(packed.div_ceil(4) * 4)?;
        }
        Ok(i64::from(step))
    })
}
