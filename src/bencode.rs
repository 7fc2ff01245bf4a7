//! Bencode, strictly: one value has one encoding, and any other is refused.
//!
//! Refuses to know what a torrent or a manifest is. Invariant: `encode(decode(x)?) == x`.

use std::collections::BTreeMap;

/// Lists and dicts within each other.
pub const MAX_DEPTH: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Int(i64),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    Dict(BTreeMap<Vec<u8>, Value>),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BencodeError {
    #[error("bencode ends at byte {at}, in the middle of a value")]
    Truncated { at: usize },
    #[error("bencode, byte {at}: {found:#04x} begins no value")]
    Unexpected { at: usize, found: u8 },
    #[error("bencode, byte {at}: not the shortest form of a number from -2^63 to 2^63-1")]
    Number { at: usize },
    #[error("bencode, byte {at}: keys are not in ascending order")]
    KeyOrder { at: usize },
    #[error("bencode, byte {at}: more than {MAX_DEPTH} lists and dicts within each other")]
    Depth { at: usize },
    #[error("bencode: {extra} bytes behind the value, which ends at byte {at}")]
    Trailing { at: usize, extra: usize },
}

impl Value {
    pub fn bytes(bytes: impl AsRef<[u8]>) -> Value {
        Value::Bytes(bytes.as_ref().to_vec())
    }

    /// A dict of these keys.
    pub fn dict<const N: usize>(entries: [(&str, Value); N]) -> Value {
        Value::Dict(entries.into_iter().map(|(key, value)| (key.as_bytes().to_vec(), value)).collect())
    }

    /// The value of `key`, if this is a dict that has it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.as_dict()?.get(key.as_bytes())
    }

    pub fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(number) => Some(*number),
            _ => None,
        }
    }

    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    pub fn as_dict(&self) -> Option<&BTreeMap<Vec<u8>, Value>> {
        match self {
            Value::Dict(dict) => Some(dict),
            _ => None,
        }
    }
}

/// Reads one value that is all of `bytes`.
pub fn decode(bytes: &[u8]) -> Result<Value, BencodeError> {
    let (value, at) = decode_prefix(bytes)?;
    if at < bytes.len() {
        return Err(BencodeError::Trailing {
            at,
            extra: bytes.len() - at,
        });
    }
    Ok(value)
}

/// Reads the value that `bytes` begins with, and says how long it is.
pub fn decode_prefix(bytes: &[u8]) -> Result<(Value, usize), BencodeError> {
    let mut reader = Reader { bytes, at: 0 };
    let value = reader.value(0)?;
    Ok((value, reader.at))
}

pub fn encode(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    encode_into(value, &mut out);
    out
}

fn encode_into(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Int(number) => out.extend_from_slice(format!("i{number}e").as_bytes()),
        Value::Bytes(bytes) => encode_bytes(bytes, out),
        Value::List(list) => {
            out.push(b'l');
            list.iter().for_each(|item| encode_into(item, out));
            out.push(b'e');
        }
        Value::Dict(dict) => {
            out.push(b'd');
            for (key, item) in dict {
                encode_bytes(key, out);
                encode_into(item, out);
            }
            out.push(b'e');
        }
    }
}

fn encode_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(bytes.len().to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(bytes);
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Result<Value, BencodeError> {
        match self.peek()? {
            b'i' => self.int(),
            b'0'..=b'9' => Ok(Value::Bytes(self.string()?)),
            b'l' | b'd' if depth == MAX_DEPTH => Err(BencodeError::Depth { at: self.at }),
            b'l' => self.list(depth),
            b'd' => self.dict(depth),
            found => Err(BencodeError::Unexpected { at: self.at, found }),
        }
    }

    fn peek(&self) -> Result<u8, BencodeError> {
        self.bytes.get(self.at).copied().ok_or(BencodeError::Truncated { at: self.at })
    }

    fn int(&mut self) -> Result<Value, BencodeError> {
        self.at += 1;
        let at = self.at;
        let number: i64 = self.number(b'e')?;
        // "-0" and zeros in front parse, but not to the same text.
        if self.at - at != number.to_string().len() + 1 {
            return Err(BencodeError::Number { at });
        }
        Ok(Value::Int(number))
    }

    fn string(&mut self) -> Result<Vec<u8>, BencodeError> {
        let at = self.at;
        let len: usize = self.number(b':')?;
        if self.at - at != len.to_string().len() + 1 {
            return Err(BencodeError::Number { at });
        }
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(BencodeError::Truncated { at: self.bytes.len() })?;
        let text = self.bytes[self.at..end].to_vec();
        self.at = end;
        Ok(text)
    }

    /// A decimal number and the byte behind it. The longest has 20 characters, so no more are looked at.
    fn number<T: std::str::FromStr>(&mut self, end: u8) -> Result<T, BencodeError> {
        let at = self.at;
        let rest = &self.bytes[at..self.bytes.len().min(at + 21)];
        let Some(len) = rest.iter().position(|byte| *byte == end) else {
            let short = rest.len() < 21 && rest.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-');
            return Err(if short {
                BencodeError::Truncated { at: at + rest.len() }
            } else {
                BencodeError::Number { at }
            });
        };
        self.at = at + len + 1;
        let text = std::str::from_utf8(&rest[..len]).map_err(|_| BencodeError::Number { at })?;
        text.parse().map_err(|_| BencodeError::Number { at })
    }

    fn list(&mut self, depth: usize) -> Result<Value, BencodeError> {
        self.at += 1;
        let mut list = Vec::new();
        while self.peek()? != b'e' {
            list.push(self.value(depth + 1)?);
        }
        self.at += 1;
        Ok(Value::List(list))
    }

    fn dict(&mut self, depth: usize) -> Result<Value, BencodeError> {
        self.at += 1;
        let mut dict = BTreeMap::new();
        loop {
            let at = self.at;
            match self.peek()? {
                b'e' => break,
                b'0'..=b'9' => {}
                found => return Err(BencodeError::Unexpected { at, found }),
            }
            let key = self.string()?;
            if dict.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(BencodeError::KeyOrder { at });
            }
            dict.insert(key, self.value(depth + 1)?);
        }
        self.at += 1;
        Ok(Value::Dict(dict))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_text_comes_back_as_it_was() {
        for text in [
            "i0e",
            "i-1e",
            "i-9223372036854775808e",
            "i9223372036854775807e",
            "0:",
            "3:abc",
            "le",
            "de",
            "d1:ai1e2:aale1:bd1:ci2eee",
        ] {
            assert_eq!(encode(&decode(text.as_bytes()).unwrap()), text.as_bytes(), "{text}");
        }
    }

    #[test]
    fn what_is_not_canonical_is_refused() {
        for text in [
            "",
            "i",
            "ie",
            "i-e",
            "i-0e",
            "i01e",
            "i+1e",
            "i1",
            "i9223372036854775808e",
            "i99999999999999999999999999e",
            "01:a",
            "1:",
            "4:abc",
            "+1:a",
            "-1:a",
            "99999999999999999999:a",
            "18446744073709551615:a",
            "l",
            "li1e",
            "d",
            "d1:a",
            "d1:ai1e1:ai1ee",
            "d1:bi1e1:ai1ee",
            "di1ei1ee",
            "x",
            "e",
            "i1ei1e",
            "i 1e",
            "\u{ff}",
        ] {
            assert!(decode(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn deep_nesting_ends_in_an_error() {
        let nested = |depth: usize| [vec![b'l'; depth], vec![b'e'; depth]].concat();
        assert!(decode(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(decode(&nested(MAX_DEPTH + 1)), Err(BencodeError::Depth { at: MAX_DEPTH }));
        assert!(decode(&vec![b'l'; 1 << 20]).is_err());
    }

    #[test]
    fn a_prefix_ends_where_its_value_ends() {
        assert_eq!(decode_prefix(b"d5:piecei0eeRAW"), Ok((Value::dict([("piece", Value::Int(0))]), 12)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_come_back(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), proptest::sample::select(&b"ilde0123:-"[..])], 0..64)) {
            if let Ok(value) = decode(&bytes) {
                prop_assert_eq!(encode(&value), bytes);
            }
        }
    }
}
