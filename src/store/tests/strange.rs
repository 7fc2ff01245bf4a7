//! What is found in `tmp/` and `journal/` and was no transaction of ours, or is none any more: a start sweeps what nobody needs and leaves the rest alone.

use super::crash::{die_at, prepare};
use super::*;
use std::collections::BTreeSet;

#[test]
fn folders_without_an_entry_are_swept() {
    let (_dir, store) = empty_store();
    let old = store.tmp_dir().join("0123456789abcdef");
    std::fs::create_dir_all(old.join("image/deep")).unwrap();
    write(old.join("image/deep/file"), b"x").unwrap();
    std::os::unix::fs::symlink("/etc", old.join("image/link")).unwrap();
    write(store.tmp_dir().join("draft-1"), b"x").unwrap();
    Store::open(store.root()).unwrap();
    assert!(is_tidy(&store));
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn what_is_no_transaction_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let store = prepare(&dir.path().join("s"));
    for strange in ["...json", "..json", ".json", "x.json", "0123456789ABCDEFG.json"] {
        write(store.journal_dir().join(strange), b"").unwrap();
    }
    let mine = store.begin(Intent::Create { name: name("b") }).unwrap();
    for strange in ["0123456789abcde0", "0123456789abcde1"] {
        std::fs::create_dir(store.tmp_dir().join(strange)).unwrap();
    }
    std::os::unix::fs::symlink("nowhere/", store.tmp_dir().join("0123456789abcde0/owner")).unwrap();
    std::fs::create_dir(store.tmp_dir().join("0123456789abcde2")).unwrap();
    std::fs::create_dir(store.tmp_dir().join("0123456789abcde2/owner")).unwrap();
    die_at(store.root(), "clone.journal");
    let store = Store::open(store.root()).unwrap();
    assert_eq!(names(&store), ["a"]);
    assert!(mine.dir().join("owner").exists() && store.objects().is_ok());
    let left = BTreeSet::from_iter(fs::list(&store.tmp_dir()).unwrap());
    let strange = ["0123456789abcde0", "0123456789abcde2"].map(std::ffi::OsString::from);
    assert_eq!(left, BTreeSet::from_iter(strange.into_iter().chain([mine.id().into()])));
}

#[test]
fn a_newer_version_s_work_stays_and_costs_a_verb_nothing() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1]);
    let id = "0123456789abcdef";
    write(store.entry_path(id), b"{\"version\":9}").unwrap();
    Store::open(store.root()).unwrap();
    assert!(
        store.entry_path(id).exists() && fs::list(&store.tmp_dir()).unwrap().is_empty(),
        "no folder that each verb would look into"
    );
    fs::make_dir(&store.txn_dir(id)).unwrap();
    write(store.txn_dir(id).join("draft"), b"x").unwrap();
    assert!(!store.has_dead().unwrap(), "nothing to be alone in the store for");
    die_at(store.root(), "clone.journal");
    assert!(store.recover_again(None).unwrap());
    assert_eq!(fs::list(&store.tmp_dir()).unwrap(), [id]);
    assert_eq!(fs::list(&store.txn_dir(id)).unwrap(), ["draft"]);
}

#[test]
fn an_entry_whose_bytes_a_power_cut_took_is_tidied_up_without_them() {
    let (_dir, store) = empty_store();
    image(&store, "a", &[1]);
    for torn in [vec![], vec![0; 77]] {
        let txn = store.txn_dir("0011223344556677");
        fs::make_dir(&txn).unwrap();
        fs::make_dir(&txn.join("image")).unwrap();
        write(store.entry_path("0011223344556677"), torn).unwrap();
        let store = Store::open(store.root()).unwrap();
        assert!(is_tidy(&store));
        assert_eq!(names(&store), ["a"]);
    }
}
