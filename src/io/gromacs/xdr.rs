//! The subset of XDR (external data representation, RFC 4506) that GROMACS uses. Errors of all reads: too few bytes
//! left, or a value out of range.

/// Reads from a given position; every read checks the remaining length.
pub struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// Reader of `bytes` from `position` on.
    pub fn new(bytes: &'a [u8], position: usize) -> Reader<'a> {
        Reader { bytes, position: position.min(bytes.len()) }
    }

    /// Reader of the same bytes at another position.
    pub fn again(&self, position: usize) -> Reader<'a> {
        Reader::new(self.bytes, position)
    }

    /// Current position.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether no bytes are left.
    pub fn at_end(&self) -> bool {
        self.position == self.bytes.len()
    }

    /// The next n bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let left = &self.bytes[self.position..];
        if n > left.len() {
            return Err(format!("truncated: expected {n} bytes, found {}", left.len()));
        }
        self.position += n;
        Ok(&left[..n])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were taken"))
    }

    pub fn i32(&mut self) -> Result<i32, String> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    pub fn i64(&mut self) -> Result<i64, String> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    pub fn f32(&mut self) -> Result<f32, String> {
        Ok(f32::from_be_bytes(self.array()?))
    }

    pub fn f64(&mut self) -> Result<f64, String> {
        Ok(f64::from_be_bytes(self.array()?))
    }

    /// A non-negative count or size.
    pub fn size(&mut self, what: &str) -> Result<usize, String> {
        let value = self.i32()?;
        usize::try_from(value).map_err(|_| format!("invalid {what}: {value}"))
    }

    /// A double or a float.
    pub fn real(&mut self, double: bool) -> Result<f64, String> {
        if double {
            self.f64()
        } else {
            Ok(f64::from(self.f32()?))
        }
    }

    /// n doubles or floats.
    pub fn reals(&mut self, n: usize, double: bool) -> Result<Vec<f64>, String> {
        let width = if double { 8 } else { 4 };
        let bytes = self.take(n.checked_mul(width).ok_or("a count is out of range")?)?;
        Ok(decode(bytes, double))
    }

    /// A string, padded to four bytes.
    pub fn string(&mut self) -> Result<String, String> {
        let length = self.size("length of a string")?;
        let bytes = self.take(length.div_ceil(4) * 4)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }
}

/// Decodes floats or doubles.
pub fn decode(bytes: &[u8], double: bool) -> Vec<f64> {
    if double {
        bytes.chunks_exact(8).map(|b| f64::from_be_bytes(b.try_into().expect("eight bytes"))).collect()
    } else {
        bytes.chunks_exact(4).map(|b| f64::from(f32::from_be_bytes(b.try_into().expect("four bytes")))).collect()
    }
}

/// Encodes values as floats or doubles.
pub fn encode(values: &[f64], double: bool) -> Vec<u8> {
    if double {
        values.iter().flat_map(|v| v.to_be_bytes()).collect()
    } else {
        values.iter().flat_map(|v| (*v as f32).to_be_bytes()).collect()
    }
}
