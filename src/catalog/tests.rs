use super::*;
use crate::ids::ImageName;
use crate::store::ImageRecord;
use crate::store::Intent;
use crate::units::Bytes;

/// Longer than any number of others' transactions takes on a slow disk, and sled to let go of a closed index.
const LONG: Duration = Duration::from_secs(300);
const SHORT: Duration = Duration::from_millis(20);

fn open(store: &Store) -> Result<Catalog, CatalogError> {
    Catalog::open_within(store, LONG)
}

fn with<T>(store: &Store, work: impl FnOnce(&Catalog) -> Result<T, CatalogError>) -> Result<T, CatalogError> {
    Catalog::with_within(store, LONG, work)
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s")).unwrap();
    (dir, store)
}

fn make_image(store: &Store, name: &str) -> ImageRecord {
    let name = ImageName::new(name).unwrap();
    let txn = store.begin(Intent::Create { name: name.clone() }).unwrap();
    let record = ImageRecord::new(name, Bytes(1 << 20), "none");
    let _lock = txn.new_image().unwrap();
    txn.publish_image(&record).unwrap();
    txn.done().unwrap();
    record
}

fn names(catalog: &Catalog) -> Vec<String> {
    let mut names: Vec<_> = catalog.images().unwrap().into_iter().map(|row| row.name.to_string()).collect();
    names.sort();
    names
}

#[test]
fn the_index_is_made_from_the_files_when_it_is_missing() {
    let (_dir, store) = store();
    make_image(&store, "a");
    make_image(&store, "b");
    assert_eq!(names(&open(&store).unwrap()), ["a", "b"]);
}

#[test]
fn what_a_transaction_wrote_the_next_one_reads() {
    let (_dir, store) = store();
    open(&store).unwrap();
    let record = make_image(&store, "a");
    with(&store, |catalog| catalog.put_image(&record)).unwrap();
    let row = with(&store, |catalog| catalog.image(&record.id())).unwrap().unwrap();
    assert_eq!((row.name, row.virtual_size_bytes), (record.name, Bytes(1 << 20)));
    with(&store, |catalog| catalog.remove_image(&ImageId::of(&ImageName::new("a").unwrap()))).unwrap();
    assert_eq!(names(&open(&store).unwrap()), [""; 0]);
}

#[test]
fn a_stale_index_is_made_again_by_its_next_opener() {
    let (_dir, store) = store();
    open(&store).unwrap();
    make_image(&store, "a");
    assert_eq!(names(&open(&store).unwrap()), [""; 0]);
    store.mark_index_stale().unwrap();
    assert_eq!(names(&open(&store).unwrap()), ["a"]);
    assert!(!store.index_marker().exists());
}

#[test]
fn the_first_opener_after_a_boot_indexes_again() {
    let (_dir, store) = store();
    let catalog = open(&store).unwrap();
    make_image(&store, "a");
    drop(catalog);
    let catalog = open(&store).unwrap();
    assert_eq!(names(&catalog), [""; 0]);
    catalog.db.insert(FINISHED, b"the boot before").unwrap();
    drop(catalog);
    assert_eq!(names(&open(&store).unwrap()), ["a"]);
}

#[test]
fn a_damaged_index_is_made_again() {
    let (_dir, store) = store();
    make_image(&store, "a");
    open(&store).unwrap();
    let path = store.root().join("catalog.sled");
    let damages: [&dyn Fn(); 4] = [
        &|| std::fs::write(path.join("conf"), b"garbage").unwrap(),
        &|| std::fs::write(path.join("db"), vec![0xa5; 300_000]).unwrap(),
        &|| {
            std::fs::remove_dir_all(&path).unwrap();
            std::fs::write(&path, b"a file where a folder should be").unwrap();
        },
        &|| std::fs::remove_file(path.join("conf")).unwrap(),
    ];
    for (case, damage) in damages.iter().enumerate() {
        damage();
        let catalog = open(&store).unwrap_or_else(|error| panic!("case {case}: {error}"));
        assert_eq!(names(&catalog), ["a"], "case {case}");
    }
}

#[test]
fn who_cannot_have_the_index_marks_the_store() {
    let (_dir, store) = store();
    let daemon = open(&store).unwrap();
    let error = Catalog::open_within(&store, SHORT).unwrap_err();
    assert!(matches!(error, CatalogError::Busy { .. }), "{error}");
    let record = make_image(&store, "a");
    assert!(Catalog::with_within(&store, SHORT, |catalog| catalog.put_image(&record)).is_err());
    assert!(store.index_marker().exists());
    daemon.refresh(&store).unwrap();
    assert_eq!(names(&daemon), ["a"]);
    assert!(!store.index_marker().exists());
    drop(daemon);
    assert_eq!(names(&open(&store).unwrap()), ["a"]);
}

#[test]
fn twenty_at_once_all_get_their_turn() {
    let (_dir, store) = store();
    open(&store).unwrap();
    std::thread::scope(|scope| {
        for n in 0..20 {
            let store = &store;
            scope.spawn(move || {
                let record = ImageRecord::new(ImageName::new(&format!("i{n}")).unwrap(), Bytes(512), "none");
                with(store, |catalog| catalog.put_image(&record)).unwrap();
            });
        }
    });
    assert_eq!(open(&store).unwrap().images().unwrap().len(), 20);
}

#[test]
fn what_nobody_told_is_learnt_by_the_next_opener() {
    let (_dir, store) = store();
    let index = open(&store).unwrap();
    let name = |name: &str| ImageName::new(name).unwrap();
    index.put_image(&make_image(&store, "a")).unwrap();
    store
        .clone_image(&name("a"), &name("b"), crate::store::HeadBounds::default())
        .unwrap()
        .txn
        .done_untold()
        .unwrap();
    store
        .clone_image(&name("a"), &name("c"), crate::store::HeadBounds::default())
        .unwrap()
        .txn
        .done_untold()
        .unwrap();
    index.refresh(&store).unwrap();
    assert_eq!(names(&index), ["a", "b", "c"]);
    drop(index);
    store.rename_image(&name("b"), &name("d")).unwrap().1.done_untold().unwrap();
    store.remove_image(&name("c")).unwrap().done_untold().unwrap();
    assert_eq!(store.untold().unwrap().len(), 2);
    assert_eq!(names(&open(&store).unwrap()), ["a", "d"]);
    assert!(store.untold().unwrap().is_empty() && !store.index_marker().exists());

    store
        .clone_image(&name("a"), &name("e"), crate::store::HeadBounds::default())
        .unwrap()
        .txn
        .done_untold()
        .unwrap();
    std::fs::write(store.root().join("catalog.untold/x"), "damage").unwrap();
    assert_eq!(names(&open(&store).unwrap()), ["a", "d", "e"]);
    assert!(store.untold().unwrap().is_empty());
}
