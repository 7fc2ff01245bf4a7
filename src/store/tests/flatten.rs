//! The links of an image follow its record, and nobody else's do.

use super::*;
use crate::ids::ImageId;

/// As the verb does it, with object `n` as the new base.
pub fn flatten(store: &Store, text: &str, n: u64, keep: usize) -> Result<Option<Txn>, StoreError> {
    let (_, Some(txn)) = store.begin_flatten(&name(text), keep)? else {
        return Ok(None);
    };
    put(&txn, n)?;
    txn.finish_flatten(&digest(n), keep, HistoryEntry::now("flatten", ""))?;
    Ok(Some(txn))
}

/// The directory has a link for each delta of the record, and none besides.
pub fn assert_aligned(store: &Store, text: &str) {
    let record = store.image(&name(text)).unwrap();
    let dir = store.image_dir(ImageId::of(&name(text)));
    let mut links: Vec<String> = fs::list(&dir)
        .unwrap()
        .into_iter()
        .map(|name| name.into_string().unwrap())
        .collect();
    links.retain(|link| link.ends_with(".delta") && link != "head.delta");
    links.sort();
    let want: Vec<String> = (0..record.chain.len()).map(|index| format!("{index:04}.delta")).collect();
    assert_eq!(links, want, "{text}");
    for (digest, link) in record.chain.iter().zip(links) {
        let inode = |path: &Path| path.metadata().unwrap().ino();
        assert_eq!(inode(&store.object_paths(digest).delta), inode(&dir.join(&link)), "{text}: {link}");
    }
}

#[test]
fn the_oldest_deltas_give_way_to_one_and_siblings_notice_nothing() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1, 2, 3, 4, 5]);
    store.clone_image(&name("a"), &name("b"), FRESH).unwrap().txn.done().unwrap();
    let published = Published {
        manifest: Sha256([1; 32]),
        info_hash: InfoHash([2; 20]),
    };
    store.update_image(&name("a"), |record| record.published = Some(published)).unwrap();
    let (before, b) = (store.image(&name("a")).unwrap(), store.image(&name("b")).unwrap());
    flatten(&store, "a", 7, 2).unwrap().unwrap().done().unwrap();
    let after = store.image(&name("a")).unwrap();
    assert_eq!(after.chain, [digest(7), digest(4), digest(5)]);
    assert_eq!(after.history.last().unwrap().verb, "flatten");
    assert_eq!(after.published, None, "what was published is another chain");
    assert_eq!((after.head, after.virtual_size), (before.head, before.virtual_size));
    assert_eq!(read(store.head_path(&name("a"))).unwrap(), b"written head");
    assert_eq!(store.image(&name("b")).unwrap(), b);
    assert_aligned(&store, "a");
    assert_aligned(&store, "b");
    assert!(is_tidy(&store) && store.problems().unwrap().is_empty());
    assert!(store.gc(false, &|_| false).unwrap().removed.is_empty(), "b has all of them");
    store.remove_image(&name("b")).unwrap().done().unwrap();
    assert_eq!(store.gc(false, &|_| false).unwrap().removed.len(), 3);
    flatten(&store, "a", 8, 0).unwrap().unwrap().done().unwrap();
    assert_eq!(store.image(&name("a")).unwrap().chain, [digest(8)]);
    assert_aligned(&store, "a");
}

#[test]
fn what_was_published_of_a_chain_that_is_gone_is_not_written_down() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1, 2, 3]);
    let published = Published {
        manifest: Sha256([1; 32]),
        info_hash: InfoHash([2; 20]),
    };
    let chain = store.image(&name("a")).unwrap().chain;
    let txn = store.begin(Intent::Publish { name: name("a") }).unwrap();
    flatten(&store, "a", 7, 1).unwrap().unwrap().done().unwrap();
    let refused = txn.finish_publish(&name("a"), &chain, published);
    assert!(matches!(refused, Err(StoreError::InUse { .. })), "{refused:?}");
    drop(txn);
    assert_eq!(store.image(&name("a")).unwrap().published, None);
}

#[test]
fn a_chain_that_would_not_get_shorter_is_left_alone() {
    let (_dir, store) = empty_store();
    image(&store, "none", &[]);
    image(&store, "one", &[1]);
    image(&store, "three", &[1, 2, 3]);
    for (image, keep) in [
        ("none", 0),
        ("one", 0),
        ("one", 7),
        ("three", 2),
        ("three", 3),
        ("three", usize::MAX),
    ] {
        let record = store.image(&name(image)).unwrap();
        assert!(flatten(&store, image, 9, keep).unwrap().is_none(), "{image}, {keep}");
        assert_eq!(store.image(&name(image)).unwrap(), record);
    }
    assert!(is_tidy(&store) && !store.index_marker().exists());
}

#[test]
fn an_image_that_is_in_use_or_absent_is_not_flattened() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1, 2]);
    let lock = store.lock_image(&name("a")).unwrap();
    assert!(matches!(flatten(&store, "a", 7, 0), Err(StoreError::InUse { .. })));
    drop(lock);
    assert!(matches!(flatten(&store, "x", 7, 0), Err(StoreError::NotFound { .. })));
    // Dropped before its decisive step, it never was.
    let (_, txn) = store.begin_flatten(&name("a"), 0).unwrap();
    drop(txn.unwrap());
    assert_eq!(store.image(&name("a")).unwrap().chain, [digest(1), digest(2)]);
    assert_aligned(&store, "a");
    assert!(is_tidy(&store));
}

#[test]
fn links_that_do_not_fit_the_record_are_problems_only_when_no_flatten_is_at_work() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1, 2, 3]);
    image(&store, "b", &[7]);
    let dir = store.image_dir(ImageId::of(&name("a")));
    let (_, txn) = store.begin_flatten(&name("a"), 0).unwrap();
    store.update_image(&name("a"), |record| record.chain = vec![digest(7)]).unwrap();
    assert!(store.problems().unwrap().is_empty(), "the links will follow");
    std::fs::rename(store.object_paths(&digest(7)).delta, store.root().join("away")).unwrap();
    let kinds = |store: &Store| store.problems().unwrap().iter().map(Problem::to_string).collect::<Vec<_>>();
    assert!(
        kinds(&store)
            .iter()
            .all(|text| text.contains("object") && text.contains("is missing"))
            && kinds(&store).len() == 2,
        "{:?}",
        kinds(&store)
    );
    std::fs::rename(store.root().join("away"), store.object_paths(&digest(7)).delta).unwrap();
    // Dropped behind its decisive step, it is completed.
    drop(txn);
    assert_aligned(&store, "a");
    fs::unlink_if_there(&dir.join("0000.delta")).unwrap();
    std::fs::hard_link(store.object_paths(&digest(1)).delta, dir.join("0000.delta")).unwrap();
    let problems = store.problems().unwrap();
    assert!(matches!(&problems[..], [Problem::LinkDiffers { index: 0, .. }]), "{problems:?}");
}
