//! What is collected, and what is not.

use super::*;

#[test]
fn gc_takes_what_no_image_and_no_transaction_has() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1, 2]);
    store.clone_image(&name("a"), &name("b"), FRESH).unwrap().txn.done().unwrap();
    let all = |_: &ObjectInfo| false;
    assert_eq!(store.gc(false, &all).unwrap(), GcReport::default());
    store.remove_image(&name("a")).unwrap().done().unwrap();
    assert_eq!(store.gc(false, &all).unwrap(), GcReport::default());
    store.remove_image(&name("b")).unwrap().done().unwrap();

    let holder = store.begin(Intent::Pull { name: name("c") }).unwrap();
    holder.hold(&digest(2)).unwrap();
    assert!(matches!(holder.hold(&digest(9)), Err(StoreError::NoObject { .. })));
    assert_eq!(store.gc(true, &|_| true).unwrap(), GcReport::default());
    let dry = store.gc(true, &all).unwrap();
    assert_eq!(
        dry.removed.iter().map(|r| r.kind).collect::<Vec<_>>(),
        [ObjectKind::Delta(digest(1))]
    );
    assert!(dry.freed >= Bytes(8192), "{dry:?}");
    assert!(store.has_object(&digest(1)));
    assert_eq!(store.gc(false, &all).unwrap(), dry);
    assert!(!store.has_object(&digest(1)) && store.has_object(&digest(2)));
    holder.done().unwrap();
    store.gc(false, &all).unwrap();
    assert_eq!(store.object_files().unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn what_only_one_image_has_is_what_gc_takes_when_it_is_gone() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1, 2]);
    store.clone_image(&name("a"), &name("b"), FRESH).unwrap().txn.done().unwrap();
    let count = |text: &str| store.only_in(&store.image(&name(text)).unwrap()).unwrap();
    assert_eq!((count("a").0, count("b").0), (0, 0));
    commit(&store, "b", 3).unwrap().done().unwrap();
    assert_eq!((count("a").0, count("b").0), (0, 1));
    // The name of the clone's source is no longer the source's.
    store.remove_image(&name("a")).unwrap().done().unwrap();
    assert_eq!(count("b").0, 3);
    image(&store, "a", &[1]);
    assert_eq!(count("b").0, 2);
    store.remove_image(&name("a")).unwrap().done().unwrap();
    store.rename_image(&name("b"), &name("a")).unwrap().1.done().unwrap();
    let (number, bytes) = count("a");
    store.remove_image(&name("a")).unwrap().done().unwrap();
    let report = store.gc(true, &|_| false).unwrap();
    assert_eq!((number as usize, bytes), (report.removed.len(), report.freed));
}

#[test]
fn gc_keeps_published_manifests_and_collects_orphans() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1]);
    let txn = store.begin(Intent::Publish { name: name("a") }).unwrap();
    let kept = txn.commit_manifest(b"kept").unwrap();
    let lost = txn.commit_manifest(b"lost").unwrap();
    let published = Published {
        manifest: kept,
        info_hash: InfoHash([7; 20]),
    };
    store.update_image(&name("a"), |record| record.published = Some(published)).unwrap();
    assert!(
        store.gc(false, &|_| false).unwrap().removed.is_empty(),
        "the transaction holds both"
    );
    txn.done().unwrap();
    let shelf = store.object_paths(&digest(1)).delta.parent().unwrap().to_path_buf();
    let orphan = shelf.join(format!("{}.meta", digest(5)));
    let arriving = shelf.join(format!("{}.meta", digest(6)));
    write(store.incoming_dir().join(format!("{}.part", digest(6))), b"").unwrap();
    let unknown = shelf.join("README");
    for path in [&orphan, &arriving, &unknown] {
        write(path, b"x").unwrap();
    }
    let report = store.gc(false, &|_| false).unwrap();
    assert_eq!(
        report.removed.iter().map(|r| r.kind).collect::<Vec<_>>(),
        [ObjectKind::Manifest(lost)]
    );
    assert_eq!(report.orphans, [orphan]);
    assert!(arriving.exists() && unknown.exists());
    assert_eq!(store.manifest(&kept).unwrap(), b"kept");
    assert!(matches!(&store.problems().unwrap()[..], [Problem::Strange { path }] if *path == unknown));
}

#[test]
fn gc_keeps_what_an_image_only_names() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1]);
    let link = store.delta_path(&name("a"), 0);
    std::fs::remove_file(&link).unwrap();
    fs::copy(&store.object_paths(&digest(1)).delta, &link, 0o400).unwrap();
    assert_eq!(links(&store, 1), 1);
    assert_eq!(store.gc(false, &|_| false).unwrap(), GcReport::default());
    assert!(store.problems().unwrap().is_empty(), "a copy is allowed");
}

#[test]
fn an_object_that_is_there_already_stays_as_it_is() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1]);
    let before = store.object_paths(&digest(1)).delta.metadata().unwrap().ino();
    let txn = store.begin(Intent::Pull { name: name("b") }).unwrap();
    put(&txn, 1).unwrap();
    assert_eq!(store.object_paths(&digest(1)).delta.metadata().unwrap().ino(), before);
    assert_eq!(links(&store, 1), 3, "held");
    let short = txn.dir().join("short");
    write(&short, b"short").unwrap();
    let error = txn.commit_object(&short, &digest(1), b"meta", &description(1, 5)).unwrap_err();
    assert!(matches!(error, StoreError::ObjectDiffers { .. }), "{error}");
}

#[test]
fn what_had_come_of_a_pull_goes_when_it_is_old_and_nobody_is_at_work_on_it() {
    use crate::store::{GIVEN_UP_AFTER, lock::Moment};
    use std::time::{Duration, SystemTime};
    let (_dir, store) = empty_store();
    image(&store, "a", &[1]);
    let incoming = store.incoming_dir();
    fs::make_dir(&incoming.join("small")).unwrap();
    let part = |n: u64, age: Duration| {
        let path = incoming.join(format!("{}.part", digest(n)));
        write(&path, b"some of it").unwrap();
        write(path.with_extension("units"), b"believed").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
        path
    };
    let minute = Duration::from_secs(60);
    let (old, young, held) = (
        part(5, GIVEN_UP_AFTER + minute),
        part(6, GIVEN_UP_AFTER - minute),
        part(7, GIVEN_UP_AFTER * 2),
    );
    let blob = incoming.join("small").join("0123.blob");
    write(&blob, b"a manifest").unwrap();
    let file = File::options().write(true).open(&blob).unwrap();
    file.set_modified(SystemTime::now() - GIVEN_UP_AFTER * 2).unwrap();
    // As a pull that is at work on it has it, however long nothing comes.
    let at_work = Moment(fs::open_lock(&held).unwrap());
    assert!(fs::try_lock(&at_work.0, &held).unwrap());
    at_work.0.set_modified(SystemTime::now() - GIVEN_UP_AFTER * 2).unwrap();
    // What was put beside the object that never came belongs to the part.
    let shelf = store.object_paths(&digest(5)).delta.parent().unwrap().to_path_buf();
    fs::ensure_dir(&shelf).unwrap();
    let meta = store.object_paths(&digest(5)).meta;
    write(&meta, b"x").unwrap();
    let dry = store.gc(true, &|_| false).unwrap();
    let gone: Vec<&Path> = dry.parts.iter().map(|part| &*part.path).collect();
    let mut want = [&*old, &*blob];
    want.sort_unstable();
    assert_eq!((gone, &dry.orphans), (want.to_vec(), &vec![meta.clone()]));
    assert!(dry.freed > Bytes::ZERO && old.exists() && blob.exists() && meta.exists());
    assert_eq!(store.gc(false, &|_| false).unwrap(), dry);
    for (path, stays) in [(&old, false), (&young, true), (&held, true)] {
        assert_eq!((path.exists(), path.with_extension("units").exists()), (stays, stays), "{path:?}");
    }
    assert!(!blob.exists() && !meta.exists());
    drop(at_work);
    assert_eq!(store.gc(false, &|_| false).unwrap().parts.len(), 1);
}
