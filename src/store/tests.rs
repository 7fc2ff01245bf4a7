use super::*;
use crate::blockio::MemoryIo;
use crate::format::head::Head;
use crate::ids::{Digest, ImageId, ImageName, InfoHash, Sha256};
use crate::units::{Bytes, ChunkSize};
use std::collections::BTreeMap;
use std::fs::{File, read, write};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

mod concurrent;
#[cfg(feature = "root-tests")]
mod crash;
mod flatten;
#[cfg(feature = "root-tests")]
mod full;
mod gc;
mod hostile;
mod stops;
mod strange;

pub fn name(text: &str) -> ImageName {
    ImageName::new(text).unwrap()
}

pub fn empty_store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s")).unwrap();
    (dir, store)
}

/// Stands for a digest in tests: the store believes who puts an object.
pub fn digest(n: u64) -> Digest {
    Digest(Sha256::of(&n.to_le_bytes()).0)
}

/// Makes image `a` half as large, with another head.
pub fn shrink(store: &Store) -> Result<Txn, StoreError> {
    let (lock, record) = (store.lock_image(&name("a"))?, store.image(&name("a"))?);
    let size = Bytes(1 << 19);
    let txn = store.begin_resize(lock, &record, size)?;
    txn.draft_head(&record)?;
    let _lock = txn.new_image()?;
    write(txn.image_dir().join("head.delta"), b"next head").map_err(|source| StoreError::Io {
        doing: "write",
        path: txn.image_dir(),
        source,
    })?;
    let head = HeadRecord {
        smallest_size: size,
        ..record.head.unwrap()
    };
    txn.finish_refit(size, head, None)?;
    Ok(txn)
}

pub fn description(n: u64, len: usize) -> Description {
    Description {
        version: Description::VERSION,
        digest: digest(n),
        len_bytes: Bytes(len as u64),
        virtual_size_bytes: Bytes(1 << 20),
        chunk_size_bytes: Bytes(4096),
        parent: Digest::NONE,
        stands_for: Digest::NONE,
        file_system: "none".into(),
        labels: BTreeMap::new(),
        info_hash: None,
        meta_sha256: None,
        meta_len_bytes: Bytes(4),
        meta_info_hash: None,
        made_by: "test".into(),
        created_unix_seconds: 1,
    }
}

pub fn content(n: u64) -> Vec<u8> {
    vec![n as u8; 8192]
}

pub fn put(txn: &Txn, n: u64) -> Result<(), StoreError> {
    let path = txn.dir().join(format!("sealed-{n}"));
    fs::write_synced(&path, &content(n), 0o600)?;
    txn.commit_object(&path, &digest(n), b"meta", &description(n, 8192))
}

pub const HEAD: HeadRecord = HeadRecord {
    smallest_size: Bytes(1 << 20),
    chunk_size: Bytes(16384),
    limit_bytes: None,
    reserve: false,
};

pub const FRESH: HeadBounds = HeadBounds {
    limit_bytes: None,
    reserve: false,
};

pub fn is_empty_head(bytes: &[u8]) -> bool {
    let head = Head::open_read_only(MemoryIo::new(bytes.to_vec())).unwrap();
    head.exceptions().is_empty() && head.chunk_size() == ChunkSize::HEAD
}

/// An image over objects `chain`, with a head that has something.
pub fn make(store: &Store, intent: Intent, chain: &[u64]) -> Result<Txn, StoreError> {
    let (Intent::Create { name } | Intent::Import { name } | Intent::Pull { name }) = intent.clone() else {
        panic!("{intent:?}")
    };
    let txn = store.begin(intent)?;
    let _lock = txn.new_image()?;
    for n in chain {
        put(&txn, *n)?;
    }
    fs::write_synced(&txn.image_dir().join("head.delta"), b"written head", 0o600)?;
    let mut record = ImageRecord::new(name, Bytes(1 << 20), "none");
    record.chain = chain.iter().map(|n| digest(*n)).collect();
    record.head = Some(HEAD);
    txn.publish_image(&record)?;
    Ok(txn)
}

pub fn image(store: &Store, text: &str, chain: &[u64]) {
    make(store, Intent::Import { name: name(text) }, chain).unwrap().done().unwrap();
}

pub fn commit(store: &Store, text: &str, n: u64) -> Result<Txn, StoreError> {
    let (_, txn) = store.begin_commit(&name(text))?;
    put(&txn, n)?;
    fs::write_synced(&txn.next_head_path(), b"next head", 0o600)?;
    txn.finish_commit(&digest(n), Some(HEAD), HistoryEntry::now("commit", ""))?;
    Ok(txn)
}

pub fn is_tidy(store: &Store) -> bool {
    fs::list(&store.tmp_dir()).unwrap().is_empty() && fs::list(&store.journal_dir()).unwrap().is_empty()
}

pub fn links(store: &Store, n: u64) -> u64 {
    store.object_paths(&digest(n)).delta.metadata().unwrap().nlink()
}

fn names(store: &Store) -> Vec<String> {
    let listing = store.images().unwrap();
    assert!(listing.unreadable.is_empty(), "{:?}", listing.unreadable);
    listing.images.into_iter().map(|image| image.name.to_string()).collect()
}

#[test]
fn the_layout_is_pinned() {
    let (_dir, store) = empty_store();
    let version = String::from_utf8(read(store.root().join("VERSION")).unwrap()).unwrap();
    assert_eq!(version, format!("blockbt store 1\nid {}\n", store.id()));
    assert_eq!(store.run_dir(), Path::new("/run/blockbt").join(store.id().to_string()));
    image(&store, "web", &[1, 2]);
    let id = &Sha256::of(b"web").to_string()[..32];
    let dir = store.root().join("images").join(id);
    let mut files: Vec<_> = fs::list(&dir).unwrap().into_iter().map(|n| n.into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, ["0000.delta", "0001.delta", "head.delta", "image.json", "lock"]);
    let hex = digest(1).to_string();
    let object = store.root().join("objects").join(&hex[..2]).join(format!("{hex}.delta"));
    assert_eq!(object.metadata().unwrap().ino(), dir.join("0000.delta").metadata().unwrap().ino());
    assert_eq!(object.metadata().unwrap().permissions().mode() & 0o7777, 0o400);
    assert_eq!(links(&store, 1), 2);
    assert_eq!(store.meta(&digest(1)).unwrap(), b"meta");
    assert_eq!(store.description(&digest(1)).unwrap(), description(1, 8192));
    assert!(is_tidy(&store));
    assert!(store.problems().unwrap().is_empty());
}

#[test]
fn image_json_is_pinned() {
    let mut record = ImageRecord::new(name("web"), Bytes(1 << 30), "ext4");
    record.head = Some(HEAD);
    record.published = Some(Published {
        manifest: Sha256([1; 32]),
        info_hash: InfoHash([2; 20]),
    });
    record.history.push(HistoryEntry {
        time_unix_seconds: 5,
        verb: "create".into(),
        detail: String::new(),
    });
    let want = format!(
        concat!(
            r#"{{"version":1,"name":"web","chain":[],"virtual_size_bytes":1073741824,"file_system":"ext4","#,
            r#""head":{{"smallest_size_bytes":1048576,"chunk_size_bytes":16384,"limit_bytes":null,"reserve":false}},"#,
            r#""next_head":{{"limit_bytes":null,"reserve":false}},"frozen":[],"#,
            r#""history":[{{"time_unix_seconds":5,"verb":"create","detail":""}}],"#,
            r#""published":{{"manifest":"{}","info_hash":"{}"}}}}"#
        ),
        "01".repeat(32),
        "02".repeat(20)
    );
    assert_eq!(serde_json::to_string(&record).unwrap(), want);
    assert_eq!(ImageRecord::parse(Path::new("x"), want.as_bytes()).unwrap(), record);
    let without_bounds = want.replacen(r#","limit_bytes":null,"reserve":false}"#, "}", 1).replacen(
        r#""next_head":{"limit_bytes":null,"reserve":false},"#,
        "",
        1,
    );
    assert_eq!(without_bounds.matches("reserve").count(), 0);
    assert_eq!(ImageRecord::parse(Path::new("x"), without_bounds.as_bytes()).unwrap(), record);
    let later = want.replacen("\"chain\"", "\"added later\":true,\"chain\"", 1);
    assert_eq!(ImageRecord::parse(Path::new("x"), later.as_bytes()).unwrap(), record);
}

#[test]
fn a_clone_shares_the_sealed_deltas_and_has_a_head_of_its_own() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1, 2, 3]);
    let Cloned { record, txn, .. } = store.clone_image(&name("a"), &name("b/c"), FRESH).unwrap();
    txn.done().unwrap();
    assert_eq!(record, store.image(&name("b/c")).unwrap());
    assert_eq!(record.chain, [digest(1), digest(2), digest(3)]);
    assert_eq!(links(&store, 3), 3);
    assert!(is_empty_head(&read(store.head_path(&name("b/c"))).unwrap()));
    assert_eq!(record.head, Some(HEAD));
    assert!(matches!(
        store.clone_image(&name("a"), &name("b/c"), FRESH),
        Err(StoreError::Exists { .. })
    ));
    assert!(matches!(
        store.clone_image(&name("x"), &name("y"), FRESH),
        Err(StoreError::NotFound { .. })
    ));
    assert_eq!(names(&store), ["a", "b/c"]);
    assert!(is_tidy(&store));
}

#[test]
fn an_attached_image_is_cloned_without_its_head() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1]);
    let _lock = store.lock_image(&name("a")).unwrap();
    store.clone_image(&name("a"), &name("c"), FRESH).unwrap().txn.done().unwrap();
    assert_ne!(read(store.head_path(&name("c"))).unwrap(), b"written head");
}

#[test]
fn a_locked_image_is_left_alone() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1]);
    let lock = store.lock_image(&name("a")).unwrap();
    let child = lock.inheritable().unwrap();
    drop(lock);
    for result in [
        store.lock_image(&name("a")).map(drop),
        store.remove_image(&name("a")).map(drop),
        store.rename_image(&name("a"), &name("b")).map(drop),
        store.begin_commit(&name("a")).map(drop),
    ] {
        assert!(matches!(result, Err(StoreError::InUse { .. })), "{result:?}");
    }
    let mut sleeper = std::process::Command::new("sleep").arg("600").stdin(child).spawn().unwrap();
    assert!(matches!(store.lock_image(&name("a")), Err(StoreError::InUse { .. })));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    let start = std::time::Instant::now();
    // Other tests of this process start programs, which have our descriptors for a moment.
    while store.lock_image(&name("a")).is_err() {
        assert!(start.elapsed().as_secs() < 60, "nobody has it");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(is_tidy(&store));
}

#[test]
fn a_new_image_is_locked_from_before_it_has_its_name() {
    let (_dir, store) = empty_store();
    let txn = store.begin(Intent::Create { name: name("a") }).unwrap();
    let lock = txn.new_image().unwrap();
    txn.publish_image(&ImageRecord::new(name("a"), Bytes(512), "none")).unwrap();
    txn.done().unwrap();
    assert!(matches!(store.lock_image(&name("a")), Err(StoreError::InUse { .. })));
    drop(lock);
    store.lock_image(&name("a")).unwrap();
}

#[test]
fn a_rename_moves_the_name_and_nothing_else() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1]);
    image(&store, "b", &[1]);
    assert!(matches!(store.rename_image(&name("a"), &name("b")), Err(StoreError::Exists { .. })));
    store.rename_image(&name("a"), &name("c")).unwrap().1.done().unwrap();
    assert_eq!(names(&store), ["b", "c"]);
    assert_eq!(read(store.head_path(&name("c"))).unwrap(), b"written head");
    assert!(matches!(store.image(&name("a")), Err(StoreError::NotFound { .. })));
}

#[test]
fn a_commit_puts_the_head_on_top_of_the_chain() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1]);
    commit(&store, "a", 2).unwrap().done().unwrap();
    assert_eq!(store.image(&name("a")).unwrap().chain, [digest(1), digest(2)]);
    assert_eq!(read(store.head_path(&name("a"))).unwrap(), b"next head");
    let (_, txn) = store.begin_commit(&name("a")).unwrap();
    put(&txn, 3).unwrap();
    let bounds = HeadBounds {
        limit_bytes: Some(Bytes(3 * 16384)),
        reserve: true,
    };
    store
        .update_image(&name("a"), |record| {
            record.head = record.head.map(|head| HeadRecord {
                limit_bytes: bounds.limit_bytes,
                reserve: true,
                ..head
            });
        })
        .unwrap();
    txn.finish_commit(&digest(3), None, HistoryEntry::now("commit", "")).unwrap();
    txn.done().unwrap();
    assert_eq!(store.image(&name("a")).unwrap().bounds(), bounds, "kept for the next head");
    assert!(!store.head_path(&name("a")).exists());
    assert!(matches!(store.begin_commit(&name("a")), Err(StoreError::NoHead { .. })));
    assert!(store.problems().unwrap().is_empty());
}

#[test]
fn an_image_whose_rename_died_is_renamed_once_more() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1]);
    let dir = |text: &str| store.image_dir(ImageId::of(&name(text)));
    let intent = Intent::Rename {
        from: name("a"),
        to: name("x"),
    };
    // As one that was killed between the directory and its record, and that nobody has settled.
    let died = store.begin(intent).unwrap();
    std::fs::rename(dir("a"), dir("x")).unwrap();
    for (from, to) in [("x", "y"), ("y", "a"), ("a", "z")] {
        store.rename_image(&name(from), &name(to)).unwrap().1.done().unwrap();
        assert_eq!(
            (store.image(&name(to)).unwrap().name, names(&store)),
            (name(to), vec![to.to_string()])
        );
    }
    died.done().unwrap();
    assert!(is_tidy(&store) && store.problems().unwrap().is_empty());
}

#[test]
fn a_head_whose_space_cannot_be_had_is_not_there() {
    let (_dir, store) = empty_store();
    let txn = store.begin(Intent::Pull { name: name("a") }).unwrap();
    let record = ImageRecord::new(name("a"), Bytes(1 << 20), "none");
    drop(txn.new_image().unwrap());
    txn.publish_image(&record).unwrap();
    txn.done().unwrap();
    let (lock, size) = (store.lock_image(&name("a")).unwrap(), Bytes(16 << 40));
    let txn = store.begin_resize(lock, &record, size).unwrap();
    let reserved = HeadBounds { reserve: true, ..FRESH };
    assert!(txn.finish_grow(size, reserved, HistoryEntry::now("resize", "")).is_err());
    assert!(!store.head_path(&name("a")).exists() && store.image(&name("a")).unwrap().head.is_none());
    txn.finish_grow(size, FRESH, HistoryEntry::now("resize", "")).unwrap();
    txn.done().unwrap();
}

#[test]
fn a_transaction_that_is_dropped_leaves_nothing() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1]);
    let (_, txn) = store.begin_commit(&name("a")).unwrap();
    put(&txn, 2).unwrap();
    drop(txn);
    drop(store.begin(Intent::Create { name: name("x") }).unwrap());
    assert!(is_tidy(&store));
    assert!(store.index_marker().exists());
    assert_eq!(store.image(&name("a")).unwrap().chain, [digest(1)]);
    assert_eq!(store.gc(false, &|_| false).unwrap().removed.len(), 1);
}

#[test]
fn a_head_has_a_limit_of_whole_chunks_and_the_next_head_gets_it() {
    let mut record = ImageRecord::new(name("web"), Bytes(1 << 20), "none");
    let with = |record: &mut ImageRecord, limit| {
        record.next_head = HeadBounds {
            limit_bytes: Some(Bytes(limit)),
            reserve: true,
        };
        record.head = Some(record.new_head(ChunkSize::HEAD));
        ImageRecord::parse(Path::new("image.json"), &record.to_bytes())
    };
    assert!(with(&mut record, 2 * 16384).is_err() && with(&mut record, 3 * 16384 + 512).is_err());
    let read = with(&mut record, 3 * 16384).unwrap();
    assert_eq!((read.head, read.bounds()), (record.head, record.next_head));
}
