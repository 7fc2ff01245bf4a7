//! Many at once, and none in the way of another.

use super::*;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[test]
fn one_of_twenty_gets_the_name() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1, 2]);
    let (won, start) = (AtomicUsize::new(0), Barrier::new(20));
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let store = Store::open(store.root()).unwrap();
                start.wait();
                match store.clone_image(&name("a"), &name("same"), FRESH) {
                    Ok(made) => {
                        made.txn.done().unwrap();
                        won.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => assert!(matches!(error, StoreError::Exists { .. }), "{error}"),
                }
            });
        }
    });
    assert_eq!(won.into_inner(), 1);
    assert_eq!(links(&store, 1), 3);
    assert!(is_tidy(&store));
}

#[test]
fn twenty_at_once_make_list_rename_and_remove_beside_gc_and_new_starts() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1, 2, 3]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..20)
            .map(|n| {
                let root = store.root();
                scope.spawn(move || {
                    for round in 0..5 {
                        // Every one a start of its own, that sweeps.
                        let store = Store::open(root).unwrap();
                        let (first, second) = (name(&format!("i{n}")), name(&format!("r{n}")));
                        store.clone_image(&name("a"), &first, FRESH).unwrap().txn.done().unwrap();
                        let listing = store.images().unwrap();
                        assert!(listing.unreadable.is_empty(), "{:?}", listing.unreadable);
                        assert!(listing.images.iter().any(|image| image.name == first));
                        commit(&store, first.as_str(), 100 + 10 * n + round).unwrap().done().unwrap();
                        store.rename_image(&first, &second).unwrap().1.done().unwrap();
                        assert_eq!(store.image(&second).unwrap().chain.len(), 4);
                        store.remove_image(&second).unwrap().done().unwrap();
                    }
                })
            })
            .collect();
        let collector = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                match store.gc(false, &|_| false) {
                    Ok(_) | Err(StoreError::Busy { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let failed = workers.into_iter().map(|worker| worker.join()).filter(Result::is_err).count();
        stop.store(true, Ordering::Relaxed);
        collector.join().unwrap();
        assert_eq!(failed, 0);
    });
    store.gc(false, &|_| false).unwrap();
    assert!(is_tidy(&store));
    assert!(store.problems().unwrap().is_empty());
    assert_eq!(store.objects().unwrap().len(), 3);
    assert_eq!(links(&store, 1), 2);
}

#[test]
fn a_start_beside_living_work_does_not_touch_it() {
    let (_dir, store) = empty_store();
    let txn = make(&store, Intent::Import { name: name("a") }, &[1]).unwrap();
    let late = store.begin(Intent::Create { name: name("b") }).unwrap();
    write(late.dir().join("half"), b"x").unwrap();
    for _ in 0..3 {
        Store::open(store.root()).unwrap();
    }
    assert!(late.dir().join("half").exists());
    txn.done().unwrap();
    late.done().unwrap();
    assert!(is_tidy(&store));
}

#[test]
fn many_may_make_the_same_store() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("deep/s");
    let start = Barrier::new(8);
    let open = || {
        start.wait();
        Store::open(&root).unwrap().id()
    };
    let ids: Vec<_> = std::thread::scope(|scope| {
        (0..8)
            .map(|_| scope.spawn(open))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|t| t.join().unwrap())
            .collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}
