//! Archives that mean harm. Each is refused by an error that names the entry, and the canary beside the root lives.

use super::Place;
use super::build::{Tar, fields, patch};
use crate::files::FilesError;
use crate::files::header::{Fields, build};
use proptest::prelude::*;

fn refused(name: &str, tar: &[u8], entry: &str, why: &str) {
    let place = Place::new();
    let error = place.import(tar).expect_err(name);
    let mut text = error.to_string();
    if let Some(cause) = std::error::Error::source(&error) {
        text = format!("{text}: {cause}");
    }
    assert!(text.contains(entry) && text.contains(why), "{name}: {text}");
    assert!(!text.chars().any(char::is_control), "{name}: {text:?}");
    place.assert_outside_untouched(name);
}

#[test]
fn nothing_is_written_outside() {
    let canary = "../canary";
    let absolute = std::env::temp_dir().join("blockbt-test-escape");
    let absolute = absolute.to_str().unwrap();
    for (name, tar, entry, why) in [
        ("absolute name", Tar::new().file(absolute, b"x").end(), absolute, "absolute"),
        (
            "absolute pax name",
            Tar::new().pax_file(&[("path", absolute.as_bytes())], "ok", b"x").end(),
            absolute,
            "absolute",
        ),
        (
            "parent name",
            Tar::new().file("../canary/new", b"x").end(),
            "../canary/new",
            "\"..\"",
        ),
        (
            "parent in the middle",
            Tar::new().dir("a").file("a/../../canary/new", b"x").end(),
            "a/../../canary/new",
            "\"..\"",
        ),
        ("parent directory", Tar::new().dir_with("..", 0o777, 0).end(), "..", "\"..\""),
        ("parent symlink", Tar::new().symlink("../evil", "x").end(), "../evil", "\"..\""),
        (
            "through a relative link",
            Tar::new().symlink("l", canary).file("l/new", b"x").end(),
            "l/new",
            "symbolic link",
        ),
        (
            "through an absolute link",
            Tar::new().symlink("l", "/tmp").file("l/new", b"x").end(),
            "l/new",
            "symbolic link",
        ),
        (
            "through two links",
            Tar::new()
                .dir("d")
                .symlink("d/up", "..")
                .symlink("d/l", "up/../canary")
                .file("d/l/new", b"x")
                .end(),
            "d/l/new",
            "symbolic link",
        ),
        (
            "link loop",
            Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", b"x").end(),
            "a/x",
            "symbolic link",
        ),
        (
            "missing parents behind a link",
            Tar::new().symlink("l", canary).file("l/a/b/c", b"x").end(),
            "l/a/b/c",
            "symbolic link",
        ),
        (
            "directory over a link",
            Tar::new().symlink("l", canary).dir_with("l", 0o777, 0).end(),
            "\"l\"",
            "directory",
        ),
        (
            "directory below a link",
            Tar::new().symlink("l", canary).dir("l/d").end(),
            "l/d",
            "symbolic link",
        ),
        (
            "hard link to an absolute name",
            Tar::new().hardlink("h", "/etc/hostname").end(),
            "\"h\"",
            "absolute",
        ),
        (
            "hard link upwards",
            Tar::new().hardlink("h", "../canary/bird").end(),
            "\"h\"",
            "\"..\"",
        ),
        (
            "hard link through a link",
            Tar::new().symlink("l", canary).hardlink("h", "l/bird").end(),
            "\"h\"",
            "symbolic link",
        ),
        (
            "hard link to a directory",
            Tar::new().dir("d").hardlink("h", "d").end(),
            "\"h\"",
            "hard link",
        ),
        ("hard link to the root", Tar::new().hardlink("h", "./").end(), "\"h\"", "root"),
        ("hard link to nothing", Tar::new().hardlink("h", "none").end(), "\"h\"", "hard link"),
        (
            "hard link with a NUL",
            Tar::new().pax(&[("linkpath", b"a\0b")]).hardlink("h", "a").end(),
            "\"h\"",
            "NUL",
        ),
        ("file as the root", Tar::new().file("./.", b"x").end(), "./.", "root"),
        ("link as the root", Tar::new().symlink(".", "/tmp").end(), "\".\"", "root"),
        (
            "name with a NUL",
            Tar::new().pax_file(&[("path", b"a\0b")], "x", b"").end(),
            "a\\0b",
            "NUL",
        ),
        ("name with an escape", Tar::new().file("/\u{1b}[2J", b"x").end(), "[2J", "absolute"),
        (
            "file over a full directory",
            Tar::new().file("d/x", b"").file("d", b"").end(),
            "\"d\"",
            "made",
        ),
        ("long name", Tar::new().gnu_long_name(&"a/".repeat(3000), b"").end(), "a/a/", "4095"),
        ("long part", Tar::new().gnu_long_name(&"a".repeat(300), b"").end(), "aaaa", "made"),
    ] {
        refused(name, &tar, entry, why);
    }
    assert!(!std::path::Path::new(absolute).exists());
}

/// A link may point anywhere; writing a file of its name replaces it.
#[test]
fn a_file_over_a_link_replaces_the_link() {
    for target in ["../canary/bird", "../canary", "/etc/hostname"] {
        let place = Place::new();
        place.import(&Tar::new().symlink("l", target).file("l", b"mine").end()).unwrap();
        assert!(std::fs::symlink_metadata(place.root().join("l")).unwrap().is_file());
        assert_eq!(std::fs::read(place.root().join("l")).unwrap(), b"mine");
        place.assert_outside_untouched(target);
    }
}

/// The name of a hard link is not followed either: the link itself gets a second name.
#[test]
fn a_hard_link_to_a_link_is_the_link() {
    let place = Place::new();
    place
        .import(
            &Tar::new()
                .symlink("l", "../canary/bird")
                .hardlink("h", "l")
                .file("h", b"mine")
                .hardlink("h", "h")
                .end(),
        )
        .unwrap();
    assert_eq!(std::fs::read(place.root().join("h")).unwrap(), b"mine");
    place.assert_outside_untouched("hard link to a symbolic link");
}

/// A directory whose mode waits for the end, swapped for a link meanwhile.
#[test]
fn a_directory_swapped_for_a_link_is_not_chmodded() {
    let place = Place::new();
    place
        .import(&Tar::new().dir_with("d", 0o777, 0).symlink("d", "../canary").end())
        .unwrap();
    let place_two = Place::new();
    place_two.import(&Tar::new().dir("a").dir_with("a/canary", 0o777, 0).end()).unwrap();
    for place in [place, place_two] {
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(place.dir.path().join("canary")).unwrap());
        assert_ne!(mode & 0o777, 0o777);
        place.assert_outside_untouched("swapped directory");
    }
}

#[test]
fn impossible_numbers_are_refused() {
    let huge = |at: usize, bytes: &[u8]| {
        let mut block = build(&fields("huge", b'0', "", 0));
        patch(&mut block, at, bytes);
        Tar::new().raw(&block).end()
    };
    let big_60 = b"\x80\0\0\0\x10\0\0\0\0\0\0\0";
    let sparse = |map: &[(u64, u64)], size| Tar::new().gnu_sparse("huge", map, size, b"12345678").end();
    let pax = |records: &[(&str, &[u8])]| Tar::new().pax_file(records, "huge", b"12345678").end();
    for (name, tar, why) in [
        ("size 2^60", huge(124, big_60), "more than any disk"),
        ("size 2^90", huge(124, b"\x84\0\0\0\0\0\0\0\0\0\0\0"), "too big"),
        ("size -1", huge(124, &[0xff; 12]), "negative"),
        ("size of letters", huge(124, b"12x45678901\0"), "octal"),
        ("uid 2^32-1", huge(108, b"\x80\0\0\0\xff\xff\xff\xff"), "group id"),
        ("uid -1", huge(108, &[0xff; 8]), "negative id"),
        ("pax size 2^60", pax(&[("size", b"1152921504606846976")]), "more than any disk"),
        ("pax size 2^64", pax(&[("size", b"18446744073709551616")]), "PAX"),
        ("pax size -1", pax(&[("size", b"-1")]), "PAX"),
        ("pax uid", pax(&[("uid", b"4294967296")]), "group id"),
        (
            "pax cut",
            Tar::new()
                .entry(&fields("huge", b'x', "", 12), b"99 path=xyz\n")
                .file("huge", b"")
                .end(),
            "PAX",
        ),
        (
            "pax of 2 MiB",
            Tar::new().entry(&fields("huge", b'x', "", 2 << 20), &vec![0; 2 << 20]).end(),
            "1 MiB",
        ),
        (
            "name of 2^60",
            Tar::new()
                .raw(&{
                    let mut block = build(&fields("huge", b'L', "", 0));
                    patch(&mut block, 124, big_60);
                    block
                })
                .end(),
            "1 MiB",
        ),
        (
            "attributes in many headers",
            (0..40)
                .fold(Tar::new(), |tar, i| {
                    tar.pax(&[(format!("SCHILY.xattr.user.{i}").as_str(), &[1; 60_000])])
                })
                .file("huge", b"")
                .end(),
            "attributes",
        ),
        ("sparse past the end", sparse(&[(0, 4), (4096, 4)], 4097), "past the end"),
        ("sparse overlaps", sparse(&[(0, 4), (2, 4)], 4096), "overlaps"),
        ("sparse backwards", sparse(&[(4096, 4), (0, 4)], 8192), "out of order"),
        ("sparse sum", sparse(&[(0, 4)], 4096), "add up"),
        (
            "sparse of 2^60",
            pax(&[("GNU.sparse.size", b"1152921504606846976"), ("GNU.sparse.map", b"0,8")]),
            "more than any disk",
        ),
        (
            "sparse past 2^64",
            pax(&[("GNU.sparse.size", b"8"), ("GNU.sparse.map", b"18446744073709551615,8")]),
            "2^64",
        ),
        (
            "sparse 2.0",
            pax(&[("GNU.sparse.size", b"8"), ("GNU.sparse.major", b"2")]),
            "version 2.0",
        ),
        ("sparse without size", pax(&[("GNU.sparse.map", b"0,8")]), "real size"),
        (
            "sparse 1.0 with 2^50 parts",
            Tar::new()
                .pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.realsize", b"8"),
                ])
                .file("huge", &[&b"1125899906842624\n"[..], &[b'0'; 512]].concat())
                .end(),
            "parts",
        ),
        (
            "sparse 1.0 with letters",
            Tar::new()
                .pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.realsize", b"8"),
                ])
                .file("huge", &[b'x'; 512])
                .end(),
            "number",
        ),
        ("global name", Tar::new().global(&[("path", b"a")]).end(), "global"),
        (
            "unknown type",
            Tar::new()
                .entry(
                    &Fields {
                        typeflag: b'Q',
                        ..fields("huge", 0, "", 0)
                    },
                    &[],
                )
                .end(),
            "'Q'",
        ),
        ("other volume", Tar::new().entry(&fields("huge", b'M', "", 0), &[]).end(), "volume"),
        ("whiteout", Tar::new().file("huge/.wh.x", b"").end(), "whiteout"),
        ("opaque whiteout", Tar::new().file("huge/.wh..wh..opq", b"").end(), "whiteout"),
    ] {
        refused(name, &tar, if name == "global name" { "PaxHeaders" } else { "huge" }, why);
    }
}

#[test]
fn an_archive_cut_short_says_where() {
    let whole = Tar::new().file("first", &[1; 2000]).file("second", &[2; 2000]).bytes();
    for (len, entry) in [
        (100, "first header"),
        (600, "first"),
        (2559, "first"),
        (2560 + 700, "second"),
        (whole.len() - 1, "second"),
    ] {
        let place = Place::new();
        let error = place.import(&whole[..len]).unwrap_err();
        assert!(
            matches!(error, FilesError::Truncated { .. }) && error.to_string().contains(entry),
            "{len}: {error}"
        );
    }
    for len in [0, 2560, whole.len()] {
        Place::new()
            .import(&whole[..len])
            .expect("a missing end marker between entries is accepted, as GNU tar does");
    }
    let mut flipped = whole.clone();
    flipped[2560 + 3] ^= 1;
    let error = Place::new().import(&flipped).unwrap_err().to_string();
    assert!(
        error.contains("checksum") && error.contains("2560") && error.contains("first"),
        "{error}"
    );
    let stray = Tar::new().file("first", b"").raw(&[0; 512]).file("second", b"").end();
    assert!(Place::new().import(&stray).unwrap_err().to_string().contains("zeros"));
    let records_only = Tar::new().pax(&[("path", b"x")]).end();
    assert!(matches!(Place::new().import(&records_only), Err(FilesError::Truncated { .. })));
}

/// What a header says is not allocated: 1 MiB of input at most, whatever it promises.
#[test]
fn a_long_record_that_is_not_there_is_truncation() {
    let tar = Tar::new().entry(&fields("x", b'x', "", 1 << 20), b"12 path=abc\n").bytes();
    assert!(matches!(Place::new().import(&tar), Err(FilesError::Truncated { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let place = Place::new();
        let _ = place.import(&bytes);
        place.assert_outside_untouched("any bytes");
    }

    #[test]
    fn any_header_with_a_right_checksum_is_survived(
        typeflag in proptest::sample::select(b"0123456SxgLKDV\0".to_vec()),
        changes in proptest::collection::vec((0usize..504, any::<u8>()), 0..8),
        data in proptest::collection::vec(any::<u8>(), 0..1500),
        declared in 0u64..2000,
    ) {
        let mut block = build(&fields("a/b", typeflag, "c/d", declared));
        for (at, byte) in changes {
            if !(148..156).contains(&at) {
                patch(&mut block, at, &[byte]);
            }
        }
        let tar = Tar::new().dir("a").file("c/d", b"x").raw(&block).raw(&data).end();
        let place = Place::new();
        let _ = place.import(&tar);
        place.assert_outside_untouched("any header");
    }

    #[test]
    fn any_sparse_text_is_survived(text in "[0-9\n]{0,600}", size in 0u64..100_000) {
        let size = size.to_string();
        let records: [(&str, &[u8]); 3] = [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", size.as_bytes())];
        let tar = Tar::new().pax_file(&records, "f", text.as_bytes()).end();
        let _ = Place::new().import(&tar);
    }
}
