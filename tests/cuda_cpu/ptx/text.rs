//! The text of PTX: its pieces, operands, numbers and declarations.

/// What the text is made of.
pub enum Piece<'a> {
    Header(&'a str),
    Open,
    Close,
    Label(&'a str),
    Statement(&'a str),
}

/// Without comments, and directives that end with their line.
pub fn cleaned(text: &str) -> String {
    const DIRECTIVES: [&str; 5] = [".version", ".target", ".address_size", ".loc", ".file"];
    let clean = |line: &str| {
        let line = line.split("//").next().unwrap();
        let ends_here = line.split_whitespace().next().is_some_and(|word| DIRECTIVES.contains(&word));
        if ends_here { "" } else { line }.to_string()
    };
    text.lines().map(|line| clean(line) + "\n").collect()
}

/// With the line where each begins.
pub fn pieces(text: &str) -> Vec<(usize, Piece<'_>)> {
    let (mut pieces, mut start, mut line) = (Vec::new(), 0, 1);
    for (at, c) in text.char_indices() {
        line += usize::from(c == '\n');
        if !matches!(c, ';' | '{' | '}' | ':') {
            continue;
        }
        let before = text[start..at].trim();
        let begun = line - before.matches('\n').count();
        match c {
            ';' => pieces.push((begun, Piece::Statement(before))),
            '{' if before.is_empty() => pieces.push((begun, Piece::Open)),
            '{' if before.contains(".entry") || before.contains(".func") => pieces.push((begun, Piece::Header(before))),
            '}' if before.is_empty() => pieces.push((begun, Piece::Close)),
            ':' if before.starts_with('$') => pieces.push((begun, Piece::Label(before))),
            _ => continue,
        }
        start = at + 1;
    }
    pieces
}

/// Parts between commas that are in no brackets.
pub fn operands(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => (),
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

/// What stands in brackets.
pub fn inside(text: &str, brackets: [char; 2]) -> Option<&str> {
    text.strip_prefix(brackets[0])?.strip_suffix(brackets[1]).map(str::trim)
}

/// A number, by its bits.
pub fn number(text: &str) -> Option<u64> {
    let hexadecimal = |digits: &str| u64::from_str_radix(digits.trim_end_matches('U'), 16).ok();
    if let Some(digits) = ["0x", "0f", "0F", "0d", "0D"].iter().find_map(|prefix| text.strip_prefix(prefix)) {
        return hexadecimal(digits);
    }
    text.parse::<i64>().map(|number| number as u64).or_else(|_| text.trim_end_matches('U').parse()).ok()
}

/// Bytes of a type, and whether it has a sign.
pub fn kind_of(name: &str) -> Option<(u8, bool)> {
    let bits: u8 = name.get(1..)?.parse().ok()?;
    let known = matches!(&name[..1], "b" | "u" | "s" | "f") && matches!(bits, 8 | 16 | 32 | 64);
    known.then_some((bits / 8, name.starts_with('s')))
}

/// `[.SPACE] [.align N] .TYPE NAME[NUMBER]`
pub struct Declaration<'a> {
    pub name: &'a str,
    pub element: usize,
    pub bytes: usize,
    pub align: usize,
}

pub fn declaration(text: &str) -> Option<Declaration<'_>> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let element = words.iter().find_map(|word| kind_of(word.strip_prefix('.')?))?.0.into();
    let at = words.iter().position(|&word| word == ".align");
    let align = at.map_or(Some(element), |at| words.get(at + 1)?.parse().ok())?;
    let (name, bytes) = match words.last()?.split_once('[') {
        None => (*words.last()?, element),
        Some((name, "]")) => (name, 0),
        Some((name, count)) => (name, element * count.strip_suffix(']')?.parse::<usize>().ok()?),
    };
    Some(Declaration { name, element, bytes, align })
}
