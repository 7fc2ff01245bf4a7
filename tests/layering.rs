//! Which layer may name which, and where each outside library lives. A new arrow is a new word in [`LAYERS`], argued for in its commit.
//!
//! Works on text, after comments and literals are blanked out. Refuses to know what a name means; a path that begins with a module of ours is
//! an arrow. Test code (a file called `tests.rs`, all below a directory `tests/`, and what follows `#[cfg(test)]` up to the end of that item)
//! may name any layer, as a model test is right to compare two of them; it may not use `unsafe` outside `sys`, nor borrow another layer's library.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Free to all, and naming nothing but each other.
const FREE: &[&str] = &["units", "ids", "bencode"];

/// `blockio` is beside most of them: whoever reads or writes the bytes of a delta does it through its traits, never through a file.
const LAYERS: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("blockio", &["sys"]),
    ("kernel", &["sys"]),
    ("format", &["blockio"]),
    ("chain", &["format", "blockio"]),
    ("store", &["format", "sys", "blockio"]),
    // store: an index is made from what the store lists.
    ("catalog", &["store", "format", "sys"]),
    ("fuse", &["chain", "sys", "blockio"]),
    // format: arrived bytes are believed by `format::verity`'s tree, and a `.meta` says which.
    ("swarm", &["store", "format", "blockio"]),
    // format: an image's files are opened as `format`'s head and sealed deltas before `chain` puts them together.
    ("attach", &["chain", "format", "store", "kernel", "fuse", "blockio"]),
    // blockio: a raw disk is written from a block device, whoever made that.
    ("files", &["attach", "blockio"]),
    (
        "service",
        &[
            "attach", "blockio", "catalog", "chain", "files", "format", "fuse", "kernel", "store", "swarm", "sys",
        ],
    ),
    ("front", &["service"]),
    ("bin", &["front", "service"]),
];

/// An outside library (by the name it has in paths) and the only places that may name it.
const HOMES: &[(&str, &[&str])] = &[
    ("sled", &["catalog"]),
    ("librqbit", &["swarm"]),
    ("librqbit_core", &["swarm"]),
    ("mainline", &["swarm"]),
    ("clap", &["front/cli", "front/config", "front/daemon", "bin"]),
    ("clap_complete", &["front/cli"]),
    ("clap_mangen", &["front/cli"]),
    ("indicatif", &["front/cli"]),
    // librqbit's storage trait speaks it.
    ("anyhow", &["front/cli", "bin", "swarm/storage"]),
    ("fuser", &["fuse"]),
    ("loopdev", &["sys", "kernel"]),
    ("devicemapper", &["kernel/dm"]),
    ("axum", &["swarm", "front"]),
    ("flate2", &["files"]),
    ("zstd", &["files"]),
    ("liblzma", &["files"]),
];

/// Lines after which a file tells a second story.
const LONGEST: usize = 600;

/// Blanks out comments, strings and character literals; keeps the line breaks.
fn code_only(text: &str) -> String {
    let (mut out, bytes, mut at) = (String::with_capacity(text.len()), text.as_bytes(), 0);
    let blank = |out: &mut String, part: &str| out.extend(part.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
    while at < bytes.len() {
        let rest = &text[at..];
        let word_before = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(len) = (!word_before).then(|| raw_string(rest)).flatten() {
            len
        } else if rest.starts_with('"') {
            quoted(rest, '"')
        } else if let Some(len) = character(rest) {
            len
        } else {
            let c = rest.chars().next().expect("not at the end");
            out.push(c);
            at += c.len_utf8();
            continue;
        };
        blank(&mut out, &rest[..len]);
        at += len;
    }
    out
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match () {
            () if rest.as_bytes()[at..].starts_with(b"/*") => (depth, at) = (depth + 1, at + 2),
            () if rest.as_bytes()[at..].starts_with(b"*/") => (depth, at) = (depth - 1, at + 2),
            () => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of `r"..."`, `r#"..."#`, `br"..."` at the start of `rest`.
fn raw_string(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = body.len() - body.trim_start_matches('#').len();
    let inside = body[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let start = rest.len() - inside.len();
    Some(inside.find(&end).map_or(rest.len(), |found| start + found + end.len()))
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a character literal; `None` for a lifetime.
fn character(rest: &str) -> Option<usize> {
    let inside = rest.strip_prefix('\'')?;
    let first = inside.chars().next()?;
    let closes = inside[first.len_utf8()..].starts_with('\'');
    (first == '\\' || closes).then(|| quoted(rest, '\''))
}

/// Blanks out the items behind `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = code.to_string();
    while let Some(start) = out.find("#[cfg(test)]") {
        let end = start + item_len(&out[start..]);
        let gone: String = out[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(start..end, &gone);
    }
    out
}

/// Length of the attribute and its item: up to the first `;` outside of brackets, or the `}` that closes its first brace.
fn item_len(code: &str) -> usize {
    let mut depth = 0_i64;
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' => depth -= 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

#[derive(Debug, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Path,
    Sign(char),
}

fn tokens(code: &str) -> Vec<Token<'_>> {
    let (mut found, mut rest) = (Vec::new(), code);
    while let Some(c) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let len = match () {
            () if word > 0 => {
                found.push(Token::Word(&rest[..word]));
                word
            }
            () if rest.starts_with("::") => {
                found.push(Token::Path);
                2
            }
            () if c.is_whitespace() => c.len_utf8(),
            () => {
                found.push(Token::Sign(c));
                c.len_utf8()
            }
        };
        rest = &rest[len..];
    }
    found
}

/// All paths in `code`, with `use a::{b, c::d}` opened up: `a::b`, `a::c::d`.
fn paths(code: &str) -> Vec<Vec<&str>> {
    let tokens = tokens(code);
    let (mut found, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let starts = matches!(tokens[at], Token::Word(_)) && (at == 0 || tokens[at - 1] != Token::Path);
        if starts {
            at = path(&tokens, at, &[], &mut found);
        } else {
            at += 1;
        }
    }
    found
}

fn path<'a>(tokens: &[Token<'a>], mut at: usize, before: &[&'a str], found: &mut Vec<Vec<&'a str>>) -> usize {
    let mut words = before.to_vec();
    while let Some(Token::Word(word)) = tokens.get(at) {
        words.push(word);
        at += 1;
        if tokens.get(at) != Some(&Token::Path) {
            break;
        }
        at += 1;
        if tokens.get(at) == Some(&Token::Sign('{')) {
            at += 1;
            while at < tokens.len() && tokens[at] != Token::Sign('}') {
                match tokens[at] {
                    Token::Word(_) => at = path(tokens, at, &words, found),
                    _ => at += 1,
                }
            }
            return at + 1;
        }
    }
    found.push(words);
    at
}

/// A source file: where it is below `src`, without the ending: `chain/disk`.
struct Source {
    module: String,
    text: String,
}

impl Source {
    fn layer(&self) -> &str {
        self.module.split('/').next().expect("split gives one")
    }

    fn is_test(&self) -> bool {
        self.module.split('/').any(|part| part == "tests")
    }

    /// Whether this file is `home` or below it.
    fn lives_in(&self, home: &str) -> bool {
        self.module == home || self.module.strip_prefix(home).is_some_and(|rest| rest.starts_with('/'))
    }

    /// The layers of ours that `code` names, resolved from `crate::`, `blockbt::` and `super::`.
    fn arrows<'a>(&self, code: &'a str) -> BTreeSet<&'a str> {
        let depth = self.module.split('/').count();
        let mut named = BTreeSet::new();
        for path in paths(code) {
            let supers = path.iter().take_while(|word| **word == "super").count();
            let first = match path[0] {
                "crate" | "blockbt" => path.get(1),
                // Exact at a file's top level; an inline module can only climb to less.
                "super" if supers >= depth => path.get(supers),
                _ => None,
            };
            named.extend(first.copied().filter(|word| is_ours(word)));
        }
        named
    }

    fn findings(&self) -> Vec<String> {
        let mut found = Vec::new();
        let all = code_only(&self.text);
        let mut say = |what: String| found.push(format!("src/{}.rs {what}", self.module));
        let lines = self.text.lines().count();
        if lines > LONGEST {
            say(format!("has {lines} lines, more than {LONGEST}: what is the second story?"));
        }
        if !self.lives_in("sys") && paths(&all).iter().any(|path| path[0] == "unsafe") {
            say("uses unsafe, whose only home is sys".into());
        }
        for (library, homes) in HOMES {
            let named = paths(&all).iter().any(|path| path[0] == *library && path.len() > 1) || all.contains(&format!("use {library};"));
            if named && !homes.iter().any(|home| self.lives_in(home)) {
                say(format!("names {library}, whose home is {}", homes.join(", ")));
            }
        }
        if self.module != "lib" && !self.is_test() {
            let may = LAYERS.iter().find(|(layer, _)| *layer == self.layer()).map(|(_, may)| *may);
            let may = if FREE.contains(&self.layer()) { Some(&[][..]) } else { may };
            match may {
                None => say(format!("is in no layer: {} is not in the list", self.layer())),
                Some(may) => {
                    for layer in self.arrows(&without_tests(&all)) {
                        if layer != self.layer() && !FREE.contains(&layer) && !may.contains(&layer) {
                            say(format!("names {layer}: {} may name {may:?}", self.layer()));
                        }
                    }
                }
            }
        }
        found
    }
}

fn is_ours(word: &str) -> bool {
    FREE.contains(&word) || LAYERS.iter().any(|(layer, _)| *layer == word)
}

fn sources(dir: &Path, found: &mut Vec<Source>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let module = path.strip_prefix(root()).unwrap().with_extension("");
            let module = module.to_str().unwrap().trim_end_matches("/mod").to_string();
            found.push(Source {
                module,
                text: fs::read_to_string(&path).unwrap(),
            });
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn every_module_names_only_what_its_layer_allows() {
    let mut found = Vec::new();
    sources(&root(), &mut found);
    assert!(found.len() > 5, "read {} files", found.len());
    let findings: Vec<String> = found.iter().flat_map(Source::findings).collect();
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

/// A home that nobody lives in is a rule that finds nothing: the library has gone, or has another name in paths.
#[test]
fn every_library_is_at_home_somewhere() {
    let mut all = Vec::new();
    sources(&root(), &mut all);
    for (library, _) in HOMES {
        let is_named = |source: &Source| paths(&code_only(&source.text)).iter().any(|path| path[0] == *library);
        assert!(all.iter().any(is_named), "{library} is named nowhere");
    }
}

fn findings(module: &str, text: &str) -> Vec<String> {
    Source {
        module: module.into(),
        text: text.into(),
    }
    .findings()
}

#[test]
fn a_forbidden_arrow_is_found_in_every_way_to_write_it() {
    for (module, text) in [
        ("format/head", "use crate::chain::Disk;"),
        ("format/head", "use crate::{units::Bytes, chain::Disk};"),
        ("format/head", "use crate::{units::{Bytes, Sectors}, chain};"),
        ("format", "fn f(d: &crate::chain::Disk) {}"),
        ("format", "use super::chain::Disk;"),
        ("format/head", "use super::super::chain::Disk;"),
        ("format", "pub use crate\n    ::chain;"),
        ("swarm/engine", "use crate::attach::attach;"),
        ("units", "use crate::format::Head;"),
        ("front/cli", "use crate::store::Store;"),
        ("bin/blockbtd", "use blockbt::store::Store;"),
        ("bin/blockbtd", "use blockbt::attach::server;"),
        ("format", "#[cfg(test)]\nmod tests;\nuse crate::chain::Disk;"),
        ("format", "#[cfg(test)]\nmod tests { fn f() {} }\nuse crate::chain::Disk;"),
        ("format", "const C: char = '\"'; use crate::chain::Disk; const D: char = '\"';"),
        ("format", "const C: &str = \"\\\"\"; use crate::chain::Disk;"),
        ("format", "const C: &[u8] = br#\"\"\"#; use crate::chain::Disk;"),
        ("format", "fn f<'a>(x: &'a u8) -> crate::chain::Disk<'a> {}"),
        ("elsewhere", "fn f() {}"),
    ] {
        assert_eq!(findings(module, text).len(), 1, "{module}: {text}: {:?}", findings(module, text));
    }
}

#[test]
fn what_is_allowed_or_only_spoken_of_is_not_found() {
    for (module, text) in [
        ("chain/disk", "use crate::format::{Extent, head::Head}; use crate::units::Bytes;"),
        ("format/head", "use super::Exception; use super::chain::x; // format::chain"),
        (
            "format",
            "// use crate::chain::Disk;\n/* crate::chain /* nested */ crate::chain */ /// crate::chain",
        ),
        (
            "format",
            "const TEXT: &str = \"use crate::chain::Disk\"; const RAW: &str = r#\"crate::chain \" \"#;",
        ),
        ("format", "#[cfg(test)]\nmod tests { use crate::chain::Disk; }"),
        ("format/tests", "use crate::chain::Disk;"),
        ("format/head/tests/cut", "use crate::chain::Disk;"),
        ("lib", "pub mod chain; pub mod store;"),
        ("sys/ioctl", "fn f() { unsafe { g() } }"),
        ("catalog/rows", "use sled::Db;"),
        ("front/cli/args", "use clap::Parser;"),
        ("chain", "let clap = zstd; let sled = 3;"),
    ] {
        assert!(findings(module, text).is_empty(), "{module}: {text}: {:?}", findings(module, text));
    }
}

#[test]
fn a_library_away_from_home_unsafe_and_a_long_file_are_found() {
    for (module, text) in [
        ("store", "use sled::Db;"),
        ("store/tests", "let db = sled::open(path);"),
        ("service", "use librqbit::{Session, api};"),
        ("service", "use mainline::Dht;"),
        ("service/request", "#[derive(clap::Args)] struct A;"),
        ("attach", "use fuser;"),
        ("store/fs", "fn f() { unsafe { g() } }"),
        ("store/tests", "fn f() { unsafe { g() } }"),
        ("systems", "fn f() {}"),
    ] {
        assert_eq!(findings(module, text).len(), 1, "{module}: {text}: {:?}", findings(module, text));
    }
    let long = "//\n".repeat(LONGEST + 1);
    assert_eq!(findings("store", &long).len(), 1);
    assert!(findings("store", &"//\n".repeat(LONGEST)).is_empty());
}
