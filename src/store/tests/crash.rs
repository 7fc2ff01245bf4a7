//! `kill -9` at every stop point: the next start tidies up, and nothing that was acknowledged is lost.

use super::flatten::{assert_aligned, flatten};
use super::*;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const VERB: &str = "BLOCKBT_TEST_VERB";
const ROOT: &str = "BLOCKBT_TEST_ROOT";

/// The store that every case starts from: `a` over 1 and 2, and object 9 that is nobody's.
pub(super) fn prepare(root: &Path) -> Store {
    let store = Store::open(root).unwrap();
    image(&store, "a", &[1, 2]);
    image(&store, "gone", &[9]);
    store.remove_image(&name("gone")).unwrap().done().unwrap();
    store
}

fn run(store: &Store, verb: &str) -> Result<(), StoreError> {
    let (a, x) = (name("a"), name("x"));
    match verb {
        "create" => make(store, Intent::Create { name: x }, &[])?.done(),
        "import" => make(store, Intent::Import { name: x }, &[7])?.done(),
        "pull" => {
            write(store.incoming_dir().join(format!("{}.part", digest(8))), b"half of another").unwrap();
            let part = store.incoming_dir().join(format!("{}.part", digest(7)));
            write(&part, content(7)).unwrap();
            write(store.incoming_dir().join(format!("{}.units", digest(7))), b"believed").unwrap();
            let txn = store.begin(Intent::Pull { name: x.clone() })?;
            txn.hold(&digest(1))?;
            txn.commit_arrived(&digest(7), b"meta", &description(7, 8192))?;
            let _lock = txn.new_image()?;
            let mut record = ImageRecord::new(x, Bytes(1 << 20), "none");
            record.chain = vec![digest(1), digest(7)];
            record.published = Some(Published {
                manifest: txn.commit_manifest(b"manifest")?,
                info_hash: InfoHash([1; 20]),
            });
            txn.publish_image(&record)?;
            txn.done()
        }
        "clone" => store.clone_image(&a, &x, FRESH)?.txn.done(),
        "commit" => commit(store, "a", 7)?.done(),
        "flatten" => {
            // All of two; three of five.
            let keep = (store.image(&a)?.chain.len() - 1) / 2;
            flatten(store, "a", 7, keep)?.expect("there is something to do").done()
        }
        "grow" => {
            let (lock, record) = (store.lock_image(&a)?, store.image(&a)?);
            let txn = store.begin_resize(lock, &record, Bytes(2 << 20))?;
            txn.finish_grow(Bytes(2 << 20), HeadBounds::default(), HistoryEntry::now("resize", ""))?;
            txn.done()
        }
        "shrink" => shrink(store)?.done(),
        "rename" => store.rename_image(&a, &x)?.1.done(),
        "rm" => store.remove_image(&a)?.done(),
        "publish" => {
            let txn = store.begin(Intent::Publish { name: a.clone() })?;
            let manifest = txn.commit_manifest(b"manifest")?;
            txn.finish_publish(
                &a,
                &store.image(&a)?.chain,
                Published {
                    manifest,
                    info_hash: InfoHash([1; 20]),
                },
            )?;
            txn.done()
        }
        "gc" => store.gc(false, &|_| false).map(drop),
        other => panic!("no verb {other}"),
    }
}

/// Whether the verb's work is there: all of it, or else nothing.
fn is_there(store: &Store, verb: &str) -> bool {
    let images: BTreeMap<String, ImageRecord> = store
        .images()
        .unwrap()
        .images
        .into_iter()
        .map(|image| (image.name.to_string(), image))
        .collect();
    let known: Vec<&str> = images.keys().map(String::as_str).collect();
    let chain = |image: &str| images[image].chain.clone();
    let head = |image: &str| read(store.head_path(&name(image))).unwrap();
    match (verb, &known[..]) {
        ("create" | "import" | "clone" | "pull", ["a"]) => false,
        ("create", ["a", "x"]) => chain("x").is_empty() && head("x") == b"written head",
        ("import", ["a", "x"]) => chain("x") == [digest(7)],
        ("clone", ["a", "x"]) => chain("x") == chain("a") && is_empty_head(&head("x")),
        ("pull", ["a", "x"]) => chain("x") == [digest(1), digest(7)] && images["x"].head.is_none(),
        ("commit", ["a"]) if chain("a").len() == 2 => {
            assert_eq!(head("a"), b"written head");
            assert!(!store.delta_path(&name("a"), 2).exists());
            false
        }
        ("commit", ["a"]) => chain("a") == [digest(1), digest(2), digest(7)] && head("a") == b"next head",
        ("flatten", ["a"]) => {
            assert_eq!(head("a"), b"written head");
            assert_aligned(store, "a");
            chain("a")[0] == digest(7)
        }
        ("grow", ["a"]) => {
            assert_eq!(head("a"), b"written head");
            images["a"].virtual_size == Bytes(2 << 20)
        }
        ("shrink", ["a"]) => {
            let is_small = images["a"].virtual_size == Bytes(1 << 19);
            assert_eq!(head("a"), if is_small { &b"next head"[..] } else { b"written head" });
            assert_eq!(chain("a"), [digest(1), digest(2)]);
            assert!((0..2).all(|index| store.delta_path(&name("a"), index).exists()));
            is_small
        }
        ("rename", ["a"]) => false,
        ("rename", ["x"]) => images["x"].name == name("x") && head("x") == b"written head",
        ("rm", ["a"]) => false,
        ("rm", []) => true,
        ("publish", ["a"]) => images["a"].published.is_some(),
        ("gc", ["a"]) => !store.has_object(&digest(9)),
        other => panic!("{other:?}"),
    }
}

/// Points that only the whole verbs pass; `tests/` kills the real programs there.
const OF_SERVICE: [&str; 15] = [
    "create.sealed",
    "create.sidecars",
    "create.object",
    "import.mounted",
    "import.filled",
    "import.sealed",
    "commit.sealed",
    "flatten.sealed",
    "grow.mounted",
    "grow.grown",
    "bounds.taken",
    "bounds.recorded",
    "bounds.done",
    "shrink.fitted",
    "shrink.trimmed",
];

/// Runs a verb in a process of its own, which dies at `point`.
pub(super) fn die_at(root: &Path, point: &str) {
    let (verb, _) = point.split_once('.').unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::crash::in_the_child_the_verb_runs_until_it_dies"])
        .env(VERB, verb)
        .env(ROOT, root)
        .env("BLOCKBT_STOP_AT", point)
        .output()
        .unwrap();
    assert_eq!(
        child.status.signal(),
        Some(9),
        "{point}: {}",
        String::from_utf8_lossy(&child.stdout)
    );
}

/// Nothing but a child of the other tests does anything here.
#[test]
fn in_the_child_the_verb_runs_until_it_dies() {
    if let (Ok(verb), Some(root)) = (std::env::var(VERB), std::env::var_os(ROOT)) {
        run(&Store::open(Path::new(&root)).unwrap(), &verb).unwrap();
    }
}

#[test]
fn a_kill_at_any_stop_point_leaves_all_or_nothing() {
    for point in stop::STOP_POINTS.iter().filter(|point| !OF_SERVICE.contains(point)) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s");
        let before = prepare(&root);
        let (verb, step) = point.split_once('.').unwrap();
        die_at(&root, point);

        // Those who had the store open, and start nothing, read all or nothing as well.
        assert!(before.images().unwrap().unreadable.is_empty(), "{point}");
        let entries: Vec<_> = fs::list(&before.journal_dir()).unwrap();
        let journal: Vec<_> = entries.iter().map(|n| (n, read(before.journal_dir().join(n)).unwrap())).collect();
        let is_one_rename = ["clone", "rm"].contains(&verb);
        assert_eq!(journal.is_empty(), is_one_rename || verb == "gc", "{point}");
        let owners: Vec<_> = fs::list(&before.tmp_dir()).unwrap();
        let is_told = |id: &std::ffi::OsString| !read(before.tmp_dir().join(id).join("owner")).unwrap().is_empty();
        assert_eq!(owners.iter().any(is_told), is_one_rename, "{point}");

        let store = Store::open(&root).unwrap();
        assert!(is_tidy(&store), "{point}");
        assert_eq!(
            store.problems().unwrap().iter().map(Problem::to_string).collect::<Vec<_>>(),
            [""; 0],
            "{point}"
        );
        let there = is_there(&store, verb);
        let done = ["renamed", "recorded", "exchanged", "head", "done", "delta", "relinked", "aligned"];
        let decided = done.contains(&step);
        assert_eq!(there, decided, "{point}");
        assert_eq!(store.index_marker().exists(), verb != "gc", "{point}");

        // A power cut may bring an entry back: settled twice is settled once.
        for (entry, bytes) in journal {
            write(store.journal_dir().join(entry), bytes).unwrap();
        }
        let store = Store::open(&root).unwrap();
        assert!(is_tidy(&store), "{point}");
        assert_eq!(is_there(&store, verb), there, "{point}");

        if !there {
            run(&store, verb).unwrap_or_else(|error| panic!("{point}: again: {error}"));
        }
        assert!(is_there(&store, verb), "{point}");
        if verb == "pull" {
            let left = format!("{}.part", digest(8));
            assert_eq!(
                fs::list(&store.incoming_dir()).unwrap(),
                [left.as_str()],
                "{point}: only what still arrives"
            );
        }
        store.gc(false, &|_| false).unwrap();
        let wanted = match verb {
            "rm" => 0,
            "flatten" => 1,
            "import" | "commit" | "publish" => 3,
            "pull" => 4,
            _ => 2,
        };
        assert_eq!(store.objects().unwrap().len(), wanted, "{point}");
        assert!(store.problems().unwrap().is_empty(), "{point}");
    }
}

/// There when a child has begun.
fn at_work(root: &Path, child: &str) -> PathBuf {
    root.with_file_name(format!("at-work-{child}"))
}

/// Works on images of its own, for as long as it is let.
#[test]
fn in_the_child_work_goes_on_until_it_is_killed() {
    let (Ok(me), Some(root)) = (std::env::var("BLOCKBT_TEST_ME"), std::env::var_os(ROOT)) else {
        return;
    };
    let root = Path::new(&root);
    write(at_work(root, &me), b"").unwrap();
    for round in 0.. {
        let store = Store::open(root).unwrap();
        let (first, second) = (name(&format!("{me}-{round}")), name(&format!("{me}-{round}-renamed")));
        store.clone_image(&name("a"), &first, FRESH).unwrap().txn.done().unwrap();
        commit(&store, first.as_str(), 1000 + round).unwrap().done().unwrap();
        store.rename_image(&first, &second).unwrap().1.done().unwrap();
        if round % 2 == 0 {
            store.remove_image(&second).unwrap().done().unwrap();
        }
    }
}

/// A child that does not outlive the test, however that ends.
struct Worker(std::process::Child);

impl Drop for Worker {
    fn drop(&mut self) {
        let killed = self.0.kill().and_then(|()| self.0.wait().map(drop));
        assert!(killed.is_ok() || std::thread::panicking());
    }
}

#[test]
fn kills_at_any_moment_beside_others_leave_a_whole_store() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    let store = prepare(&root);
    // Until enough was done to be killed in the middle of, however slow the machine is just now.
    let enough = |round: u64| round >= 12 && store.images().unwrap().images.len() > 12;
    for round in (0..).take_while(|round| !enough(*round)) {
        assert!(round < 200, "hardly any work is done");
        let mut children: Vec<_> = (0..4)
            .map(|n| {
                let child = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "store::tests::crash::in_the_child_work_goes_on_until_it_is_killed"])
                    .env("BLOCKBT_TEST_ME", format!("{round}-{n}"))
                    .env(ROOT, &root)
                    .stdout(std::process::Stdio::null())
                    .spawn()
                    .unwrap();
                Worker(child)
            })
            .collect();
        for (n, child) in children.iter_mut().enumerate() {
            while !at_work(&root, &format!("{round}-{n}")).exists() {
                assert_eq!(child.0.try_wait().unwrap(), None, "it failed before it began");
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            // Longer and longer, where that has not been enough.
            let more = 20 * round.saturating_sub(12);
            std::thread::sleep(std::time::Duration::from_millis(13 + 7 * n as u64 + round % 29 + more));
            child.0.kill().unwrap();
            let status = child.0.wait().unwrap();
            assert_eq!(status.signal(), Some(9), "it failed before it was killed");
            assert!(store.images().unwrap().unreadable.is_empty());
        }
        let store = Store::open(&root).unwrap();
        assert!(is_tidy(&store));
        assert_eq!(
            store.problems().unwrap().iter().map(Problem::to_string).collect::<Vec<_>>(),
            [""; 0]
        );
    }
    let store = Store::open(&root).unwrap();
    let images = store.images().unwrap().images;
    for image in images {
        store.remove_image(&image.name).unwrap().done().unwrap();
    }
    store.gc(false, &|_| false).unwrap();
    assert_eq!(store.object_files().unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn a_head_that_was_written_after_the_crash_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    let store = prepare(&root);
    die_at(&root, "commit.recorded");
    let mut head = File::options().append(true).open(store.head_path(&name("a"))).unwrap();
    head.write_all(b", and more").unwrap();
    drop(head);
    let store = Store::open(&root).unwrap();
    assert_eq!(read(store.head_path(&name("a"))).unwrap(), b"written head, and more");
    assert_eq!(store.image(&name("a")).unwrap().chain.len(), 3);
    assert!(is_tidy(&store));
}

#[test]
fn dead_work_on_an_image_in_use_waits() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    let store = prepare(&root);
    die_at(&root, "commit.linked");
    let lock = store.lock_image_raw(&name("a")).unwrap();
    let store = Store::open(&root).unwrap();
    assert!(!is_tidy(&store));
    assert!(store.delta_path(&name("a"), 2).exists());
    drop(lock);
    store.lock_image(&name("a")).unwrap();
    assert!(is_tidy(&store), "who takes the image settles it first");
    assert!(!store.delta_path(&name("a"), 2).exists());
}

#[test]
fn dead_work_on_an_attached_image_waits_for_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    prepare(&root);
    let is_attached = Arc::new(AtomicBool::new(true));
    let asked = is_attached.clone();
    die_at(&root, "commit.recorded");
    // Who only looks where the store is has nobody to ask.
    assert!(Store::find(&root).unwrap().is_some() && Store::make(&root).is_ok());
    let store = Store::open_guarded(&root, Guard::new(move |_, _| Ok(asked.load(Ordering::Relaxed)))).unwrap();
    assert!(matches!(store.lock_image(&name("a")), Err(StoreError::InUse { .. })));
    assert_eq!(
        read(store.head_path(&name("a"))).unwrap(),
        b"written head",
        "the kernel may have it"
    );
    is_attached.store(false, Ordering::Relaxed);
    store.lock_image(&name("a")).unwrap();
    assert_eq!(read(store.head_path(&name("a"))).unwrap(), b"next head");
    assert!(is_tidy(&store));
}

#[test]
fn who_dies_beside_an_open_store_is_found_by_a_look() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    let store = prepare(&root);
    for point in ["clone.journal", "import.object", "rm.renamed"] {
        assert!(!store.recover_again(None).unwrap());
        die_at(&root, point);
        assert!(store.recover_again(None).unwrap(), "{point}");
        assert!(is_tidy(&store) && store.index_marker().exists(), "{point}");
        std::fs::remove_file(store.index_marker()).unwrap();
    }
    let mine = store.begin(Intent::Create { name: name("x") }).unwrap();
    assert!(!store.recover_again(None).unwrap() && mine.dir().exists());
}

#[test]
fn a_flatten_that_died_is_completed_or_never_was_and_its_readers_see_one_chain() {
    for point in stop::STOP_POINTS
        .iter()
        .filter(|point| point.starts_with("flatten.") && !OF_SERVICE.contains(point))
    {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s");
        let before = Store::open(&root).unwrap();
        image(&before, "a", &[1, 2, 3, 4, 5]);
        before.clone_image(&name("a"), &name("b"), FRESH).unwrap().txn.done().unwrap();
        die_at(&root, point);

        // Those who had the store open find every delta of the record, and nothing to complain of; nor can gc take any.
        assert!(before.problems().unwrap().is_empty(), "{point}");
        before.gc(false, &|_| false).unwrap();
        let chain = before.image(&name("a")).unwrap().chain;
        for digest in &chain {
            before.open_object(digest).unwrap();
        }
        // It waits for an image in use.
        let lock = before.lock_image_raw(&name("a")).unwrap();
        let store = Store::open(&root).unwrap();
        assert!(!is_tidy(&store) && store.problems().unwrap().is_empty(), "{point}");
        drop(lock);
        store.lock_image(&name("a")).unwrap();
        assert!(is_tidy(&store) && store.problems().unwrap().is_empty(), "{point}");
        assert_aligned(&store, "a");
        assert_aligned(&store, "b");
        let old: Vec<_> = (1..=5).map(digest).collect();
        let new = vec![digest(7), digest(4), digest(5)];
        let decided = ["recorded", "relinked", "aligned", "done"].iter().any(|step| point.ends_with(step));
        assert_eq!(
            store.image(&name("a")).unwrap().chain,
            if decided { new } else { old.clone() },
            "{point}"
        );
        assert_eq!(chain, store.image(&name("a")).unwrap().chain, "{point}");
        assert_eq!(store.image(&name("b")).unwrap().chain, old, "{point}");
    }
}
