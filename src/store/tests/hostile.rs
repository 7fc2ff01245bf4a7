//! Files that say what they should not.

use super::*;

#[test]
fn what_is_not_a_store_is_not_made_one() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path().join("thesis.tex"), b"years of work").unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::NotAStore { .. }), "{error}");
    assert_eq!(error.to_string(), format!("not a blockbt store: {}", dir.path().display()));
    assert_eq!(fs::list(dir.path()).unwrap().len(), 1);
}

#[test]
fn version_files_are_ours_newer_or_not_ours() {
    let (_dir, store) = empty_store();
    let path = store.root().join("VERSION");
    type Check = fn(&StoreError) -> bool;
    let not_ours: Check = |e| matches!(e, StoreError::NotAStore { .. });
    let cases: [(&[u8], Check); 9] = [
        (b"", not_ours),
        (b"blockbt store \nid 0011223344556677\n", not_ours),
        (b"blockbt store -1\n", not_ours),
        (b"blockbt store 99999999999999999999999\n", not_ours),
        (b"\xff\xfe", not_ours),
        (b"blockbt store 2\nid 0011223344556677\n", |e| {
            matches!(e, StoreError::Newer { found: 2, known: 1, .. })
        }),
        (b"blockbt store 1\n", |e| matches!(e, StoreError::Damaged { .. })),
        (b"blockbt store 1\nid ../../../../etc\n", |e| {
            matches!(e, StoreError::Damaged { .. })
        }),
        (&[b'x'; 5000], |e| matches!(e, StoreError::TooLarge { .. })),
    ];
    for (bytes, check) in cases {
        write(&path, bytes).unwrap();
        let error = Store::open(store.root()).unwrap_err();
        assert!(
            check(&error),
            "{:?}: {error}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(40)])
        );
    }
    write(&path, b"blockbt store 7\n").unwrap();
    let text = Store::open(store.root()).unwrap_err().to_string();
    assert!(text.contains('7') && text.contains('1'), "{text}");
}

#[test]
fn a_hostile_record_is_an_error_and_hides_no_other_image() {
    let (_dir, store) = empty_store();
    image(&store, "good", &[1]);
    image(&store, "bad", &[1]);
    let path = store.image_dir(ImageId::of(&name("bad"))).join("image.json");
    let whole = String::from_utf8(read(&path).unwrap()).unwrap();
    let deep = "[".repeat(100_000);
    let long = format!("{{\"version\":1,\"name\":\"bad\",\"x\":\"{}\"}}", "y".repeat(2 << 20));
    let chain = format!("[{}]", vec![format!("\"{}\"", digest(1)); 5000].join(","));
    let cases = [
        String::new(),
        whole[..whole.len() / 2].to_string(),
        deep,
        long,
        whole.replace("\"version\": 1", "\"version\": 2"),
        whole.replace("\"version\": 1", "\"version\": -1"),
        whole.replace("\"name\": \"bad\"", "\"name\": \"good\""),
        whole.replace("\"name\": \"bad\"", "\"name\": \"../bad\""),
        whole.replace("\"virtual_size_bytes\": 1048576", "\"virtual_size_bytes\": 0"),
        whole.replace("\"virtual_size_bytes\": 1048576", "\"virtual_size_bytes\": 1152921504606846976"),
        whole.replace("\"chunk_size_bytes\": 16384", "\"chunk_size_bytes\": 3"),
        whole.replace("\"smallest_size_bytes\": 1048576", "\"smallest_size_bytes\": 1048577"),
        whole.replace(&format!("\"{}\"", digest(1)), "\"../../etc/passwd\""),
        whole.replace(&format!("[\n    \"{}\"\n  ]", digest(1)), &chain),
    ];
    for (case, text) in cases.iter().enumerate() {
        assert_ne!(*text, whole, "case {case} changes nothing");
        write(&path, text).unwrap();
        let error = store.image(&name("bad")).unwrap_err();
        assert!(!matches!(error, StoreError::NotFound { .. }), "case {case}: {error}");
        let listing = store.images().unwrap();
        assert_eq!((listing.images.len(), listing.unreadable.len()), (1, 1), "case {case}");
        assert_eq!(store.problems().unwrap().len(), 1, "case {case}");
    }
    // It can be removed all the same, and meanwhile no manifest is taken for unpublished.
    let txn = store.begin(Intent::Publish { name: name("good") }).unwrap();
    txn.commit_manifest(b"somebody's").unwrap();
    txn.done().unwrap();
    assert!(store.gc(false, &|_| false).unwrap().removed.is_empty());
    store.remove_image(&name("bad")).unwrap().done().unwrap();
    assert_eq!(store.gc(false, &|_| false).unwrap().removed.len(), 1);
}

#[test]
fn what_is_not_a_file_is_not_waited_for() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1]);
    let path = store.image_dir(ImageId::of(&name("a"))).join("image.json");
    std::fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    assert!(matches!(store.image(&name("a")), Err(StoreError::Damaged { .. })));
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(matches!(store.image(&name("a")), Err(StoreError::Io { .. })));
}

#[test]
fn a_hostile_description_is_an_error() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1]);
    let path = store.object_paths(&digest(1)).description;
    let whole = String::from_utf8(read(&path).unwrap()).unwrap();
    let cases = [
        String::new(),
        "null".into(),
        whole.replace("\"version\": 1", "\"version\": 3"),
        whole.replace(&digest(1).to_string(), &digest(2).to_string()),
        whole.replace("\"len_bytes\": 8192", "\"len_bytes\": -1"),
    ];
    std::fs::remove_file(&path).unwrap();
    for text in cases {
        assert_ne!(text, whole);
        write(&path, &text).unwrap();
        assert!(store.description(&digest(1)).is_err(), "{text}");
        assert!(
            matches!(&store.problems().unwrap()[..], [Problem::DescriptionUnreadable { .. }]),
            "{text}"
        );
    }
    store.write_description(&description(1, 8192)).unwrap();
    assert!(store.problems().unwrap().is_empty());
}

#[test]
fn a_hostile_journal_stops_no_start_and_is_kept() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1]);
    let journal = store.journal_dir();
    for (file, text) in [
        ("0.json", "{"),
        ("1.json", "{\"version\":9}"),
        (
            "2.json",
            "{\"version\":1,\"pid\":1,\"intent\":{\"verb\":\"rm\",\"name\":\"../../x\"}}",
        ),
        ("README", "hello"),
    ] {
        write(journal.join(file), text).unwrap();
    }
    Store::open(store.root()).unwrap();
    Store::open(store.root()).unwrap();
    assert_eq!(names(&store), ["a"]);
    assert_eq!(fs::list(&journal).unwrap().len(), 4);
}

#[test]
fn what_only_looks_like_an_entry_excuses_nothing() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1, 2]);
    std::fs::remove_file(store.delta_path(&name("a"), 0)).unwrap();
    let entry = "{\"version\":1,\"pid\":1,\"intent\":{\"verb\":\"flatten\",\"name\":\"a\"}}";
    write(store.journal_dir().join("0123456789abcdef.json.json"), entry).unwrap();
    assert!(matches!(&store.problems().unwrap()[..], [Problem::LinkMissing { .. }]));
    write(store.journal_dir().join("0123456789abcdef.json"), entry).unwrap();
    assert!(store.problems().unwrap().is_empty(), "a flatten that died may be half way");
}

#[test]
fn problems_are_found_one_by_one() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1, 2, 3]);
    let image = name("a");
    std::fs::remove_file(store.delta_path(&image, 0)).unwrap();
    std::fs::remove_file(store.object_paths(&digest(2)).delta).unwrap();
    std::fs::remove_file(store.delta_path(&image, 2)).unwrap();
    write(store.delta_path(&image, 2), b"something else").unwrap();
    std::fs::remove_file(store.head_path(&image)).unwrap();
    std::fs::remove_file(store.object_paths(&digest(1)).meta).unwrap();
    let path = store.object_paths(&digest(3)).delta;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let found: Vec<String> = store.problems().unwrap().iter().map(Problem::to_string).collect();
    let has = |text: &str| assert!(found.iter().any(|line| line.contains(text)), "{text}: {found:#?}");
    has("0000.delta is missing");
    has(&format!("object {} is missing, 0001.delta still has it", digest(2)));
    has("0002.delta is not");
    has("its head is missing");
    has("its .meta is missing");
    has("mode 0644, want 0400");
    assert_eq!(found.len(), 6, "{found:#?}");
}
