//! A disk that fills up, at every step: the old state stays, and the error says so.

use super::*;
use std::process::Command;

/// A tmpfs of its own, gone with the value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(options: &str) -> SmallDisk {
        let dir = tempfile::tempdir().unwrap();
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "blockbt-test"])
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(done.success());
        SmallDisk(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What other tests start has our descriptors for a moment.
        let done = crate::kernel::mounts::unmount(self.path(), std::time::Duration::from_secs(60));
        assert!(done.is_ok() || std::thread::panicking(), "{done:?}");
    }
}

type Verb = (&'static str, fn(&Store) -> Result<Txn, StoreError>);

const VERBS: [Verb; 8] = [
    ("create", |store| make(store, Intent::Create { name: name("x") }, &[])),
    ("import", |store| make(store, Intent::Import { name: name("x") }, &[7, 8])),
    ("pull", |store| make(store, Intent::Pull { name: name("x") }, &[1, 7])),
    ("clone", |store| {
        store.clone_image(&name("a"), &name("x"), FRESH).map(|made| made.txn)
    }),
    ("commit", |store| commit(store, "a", 7)),
    ("publish", publish),
    ("shrink", shrink),
    ("rename", |store| store.rename_image(&name("a"), &name("x")).map(|(_, txn)| txn)),
];

fn publish(store: &Store) -> Result<Txn, StoreError> {
    let txn = store.begin(Intent::Publish { name: name("a") })?;
    let manifest = txn.commit_manifest(b"manifest")?;
    txn.finish_publish(
        &name("a"),
        &store.image(&name("a"))?.chain,
        Published {
            manifest,
            info_hash: InfoHash([1; 20]),
        },
    )?;
    Ok(txn)
}

type State = (String, Vec<Digest>, Vec<u8>, Option<Published>);

fn state(store: &Store) -> Vec<State> {
    let listing = store.images().unwrap();
    assert!(listing.unreadable.is_empty(), "{:?}", listing.unreadable);
    let of = |image: ImageRecord| {
        (
            image.name.to_string(),
            image.chain,
            read(store.head_path(&image.name)).unwrap(),
            image.published,
        )
    };
    listing.images.into_iter().map(of).collect()
}

/// Leaves less and less out until there is room for the verb; `fill` gives back what it needs to be undone.
fn until_it_fits(disk: &SmallDisk, fill: &dyn Fn(u64), empty: &dyn Fn()) {
    for (verb, run) in VERBS {
        let mut failures = 0;
        for room in 0.. {
            assert!(room < 64, "{verb} never fits");
            let root = disk.path().join("s");
            let store = Store::open(&root).unwrap();
            image(&store, "a", &[1, 2]);
            let before = state(&store);
            fill(room);
            let result = run(&store).and_then(Txn::done);
            // Nothing has been freed yet, and no new start has tidied up. A rename that is past its rename stays done.
            let after = state(&store);
            if let Err(error) = &result {
                assert!(
                    error.is_full(),
                    "{verb} with room for {room}: {error}: {:?}",
                    std::error::Error::source(error)
                );
                failures += 1;
            }
            for folder in fs::list(&store.tmp_dir()).unwrap() {
                let left = fs::list(&store.tmp_dir().join(folder)).unwrap();
                assert_eq!(
                    left,
                    ["owner"],
                    "{verb} with room for {room}: what was made is no longer in the way"
                );
            }
            if result.is_err() && verb != "rename" {
                assert_eq!(after, before, "{verb} with room for {room}");
            }
            empty();
            let store = Store::open(&root).unwrap();
            assert!(is_tidy(&store), "{verb} with room for {room}");
            assert_eq!(state(&store), after, "{verb} with room for {room}");
            assert!(store.problems().unwrap().is_empty(), "{verb} with room for {room}");
            store.gc(false, &|_| false).unwrap();
            assert_eq!(store.problems().unwrap().len(), 0);
            std::fs::remove_dir_all(&root).unwrap();
            if result.is_ok() {
                break;
            }
        }
        assert!(failures >= 2, "{verb} failed {failures} times: the disk was never full");
    }
}

#[test]
fn a_full_disk_leaves_the_old_state() {
    let disk = SmallDisk::new("size=512k");
    let filler = disk.path().join("filler");
    let fill = |room: u64| {
        let mut file = File::create(&filler).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        let len = file.metadata().unwrap().len() / 4096 * 4096;
        file.set_len(len - room * 4096).unwrap();
    };
    // Cut first: what other tests start has it open for a moment, and the room with it.
    let empty = || {
        File::create(&filler).unwrap();
        std::fs::remove_file(&filler).unwrap();
    };
    until_it_fits(&disk, &fill, &empty);
}

#[test]
fn a_disk_without_free_inodes_leaves_the_old_state() {
    let disk = SmallDisk::new("nr_inodes=120");
    let fillers = disk.path().join("fillers");
    let fill = |room: u64| {
        std::fs::create_dir(&fillers).unwrap();
        let made = (0..).take_while(|n| File::create(fillers.join(n.to_string())).is_ok()).count() as u64;
        (0..room).for_each(|n| std::fs::remove_file(fillers.join((made - 1 - n).to_string())).unwrap());
    };
    until_it_fits(&disk, &fill, &|| std::fs::remove_dir_all(&fillers).unwrap());
}

#[test]
fn a_full_disk_is_made_room_on() {
    let disk = SmallDisk::new("size=512k");
    let store = Store::open(&disk.path().join("s")).unwrap();
    image(&store, "a", &[1, 2]);
    image(&store, "b", &[1]);
    let mut filler = File::create(disk.path().join("filler")).unwrap();
    while filler.write_all(&[1; 4096]).is_ok() {}
    store.remove_image(&name("a")).unwrap().done().unwrap();
    let store = Store::open(store.root()).unwrap();
    assert_eq!(store.gc(false, &|_| false).unwrap().removed.len(), 1);
    assert_eq!(state(&store).len(), 1);
    assert!(is_tidy(&store));
}

#[test]
fn a_link_across_file_systems_is_a_copy_with_the_same_holes() {
    let disk = SmallDisk::new("size=1m");
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), disk.path().join("to"));
    let file = File::create(&from).unwrap();
    file.set_len(64 << 20).unwrap();
    for at in [0, 5 << 20, (64 << 20) - 4096] {
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], at).unwrap();
    }
    fs::link_or_copy(&from, &to).unwrap();
    assert!(read(&from).unwrap() == read(&to).unwrap());
    assert_eq!(to.metadata().unwrap().blocks() * 512, 3 * 4096);
    assert_eq!(to.metadata().unwrap().permissions().mode() & 0o777, 0o400);
}
