//! Which parts of a file are data and which are holes. Knows no archive format but the text of PAX 1.0 maps.
//!
//! Invariant: the parts of a [`Map`] are in order, do not overlap, lie within the file and add up to what is stored.

use super::pax;

/// More parts than any real file has; 16 MiB of memory.
const MAX_PARTS: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// Offset and length of each run of data.
    pub parts: Vec<(u64, u64)>,
    /// The file's size, holes included.
    pub size: u64,
}

impl Map {
    pub fn check(parts: Vec<(u64, u64)>, size: u64, stored: u64) -> Result<Map, &'static str> {
        let mut end = 0;
        let mut sum = 0u64;
        for &(offset, length) in &parts {
            let next = offset.checked_add(length).ok_or("its sparse map goes past 2^64")?;
            if offset < end {
                return Err("its sparse map is out of order or overlaps");
            }
            if next > size {
                return Err("its sparse map goes past the end of the file");
            }
            end = next;
            sum = sum.checked_add(length).ok_or("its sparse map goes past 2^64")?;
        }
        if sum != stored {
            return Err("its sparse map does not add up to what is stored");
        }
        Ok(Map { parts, size })
    }

    /// The text that precedes the data in PAX 1.0, padded to whole blocks.
    pub fn to_text(&self) -> Vec<u8> {
        let mut text = format!("{}\n", self.parts.len()).into_bytes();
        for (offset, length) in &self.parts {
            text.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
        }
        text.resize(text.len().next_multiple_of(super::header::BLOCK), 0);
        text
    }

    pub fn stored(&self) -> u64 {
        self.parts.iter().map(|part| part.1).sum()
    }
}

/// Room for one more part?
pub fn check_count(parts: usize) -> Result<(), &'static str> {
    if parts > MAX_PARTS {
        Err("its sparse map has more than 1,048,576 parts")
    } else {
        Ok(())
    }
}

/// Reads the map's text as its blocks arrive.
#[derive(Default)]
pub struct TextReader {
    digits: Vec<u8>,
    count: Option<u64>,
    numbers: Vec<u64>,
}

impl TextReader {
    /// Takes one block; `true` when the map is whole.
    pub fn feed(&mut self, block: &[u8]) -> Result<bool, &'static str> {
        for &byte in block {
            if self.done() {
                break;
            }
            if byte != b'\n' {
                self.digits.push(byte);
                if self.digits.len() > 20 {
                    return Err("a number in its sparse map is too big");
                }
                continue;
            }
            let value = pax::number(&self.digits).map_err(|_| "its sparse map is not made of numbers")?;
            self.digits.clear();
            match self.count {
                None => {
                    check_count(usize::try_from(value).unwrap_or(usize::MAX))?;
                    self.count = Some(value);
                }
                Some(_) => self.numbers.push(value),
            }
        }
        Ok(self.done())
    }

    fn done(&self) -> bool {
        self.count.is_some_and(|count| self.numbers.len() as u64 == 2 * count)
    }

    pub fn parts(self) -> Vec<(u64, u64)> {
        self.numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
    }
}
