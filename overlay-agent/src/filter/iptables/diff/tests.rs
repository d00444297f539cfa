use super::*;

const EMPTY: &str = "-P PREROUTING ACCEPT\n-P POSTROUTING ACCEPT\n";

fn spec(place: Place) -> ChainSpec {
    ChainSpec {
        table: IptablesTable::Nat,
        name: "OURS",
        hook: "POSTROUTING",
        place,
        jump: "-m comment --comment \"two words\" -j OURS".into(),
        rules: Some(vec![
            "-s 10.0.0.0/8 -m comment --comment \"two words\" -j RETURN".into(),
            "! -d 10.0.0.0/8 -j MASQUERADE --random-fully".into(),
        ]),
    }
}

fn plan_for(listing: &str, spec: &ChainSpec) -> Option<TablePlan> {
    let listing = Listing::parse(listing);
    plan(
        IptablesTable::Nat,
        &listing,
        std::slice::from_ref(spec),
        &Renderings::new(),
    )
}

const INSTALLED: &str = "\
-P POSTROUTING ACCEPT
-N OURS
-A POSTROUTING -s 172.7.21.0/24 ! -o docker0 -j MASQUERADE
-A POSTROUTING -m comment --comment \"two words\" -j OURS
-A OURS -s 10.0.0.0/8 -m comment --comment \"two words\" -j RETURN
-A OURS ! -d 10.0.0.0/8 -j MASQUERADE --random-fully
";

#[test]
fn missing_rules_are_installed_as_one_block() {
    let plan = plan_for(EMPTY, &spec(Place::Last)).unwrap();
    assert_eq!(
        plan.restore,
        "\
*nat
:OURS - [0:0]
-A OURS -s 10.0.0.0/8 -m comment --comment \"two words\" -j RETURN
-A OURS ! -d 10.0.0.0/8 -j MASQUERADE --random-fully
-A POSTROUTING -m comment --comment \"two words\" -j OURS
COMMIT
"
    );
    assert_eq!(
        plan.changes,
        [ChainChange {
            chain: "OURS",
            kind: ChangeKind::Installed
        }]
    );
}

#[test]
fn installed_rules_need_nothing() {
    assert_eq!(plan_for(INSTALLED, &spec(Place::Last)), None);
}

#[test]
fn the_order_of_matches_does_not_matter() {
    let listing = INSTALLED.replace(
        "-A OURS -s 10.0.0.0/8 -m comment --comment \"two words\" -j RETURN",
        "-A OURS -m comment --comment \"two words\" -s 10.0.0.0/8 -j RETURN",
    );
    assert_eq!(plan_for(&listing, &spec(Place::Last)), None);
}

#[test]
fn the_order_of_rules_does_matter() {
    let mut lines: Vec<&str> = INSTALLED.lines().collect();
    lines.swap(4, 5);
    let plan = plan_for(&lines.join("\n"), &spec(Place::Last)).unwrap();
    assert!(plan.restore.contains(":OURS - [0:0]"), "{}", plan.restore);
    assert_eq!(plan.changes[0].kind, ChangeKind::Repaired);
}

#[test]
fn a_negation_is_part_of_its_match() {
    let listing = INSTALLED.replace("! -d 10.0.0.0/8", "-d 10.0.0.0/8");
    assert!(plan_for(&listing, &spec(Place::Last)).is_some());
}

#[test]
fn a_foreign_rule_inside_our_chain_is_taken_out() {
    let listing = format!("{INSTALLED}-A OURS -j ACCEPT\n");
    assert!(plan_for(&listing, &spec(Place::Last)).is_some());
}

#[test]
fn a_jump_that_must_be_first_is_moved_before_dockers_rule() {
    let plan = plan_for(INSTALLED, &spec(Place::First)).unwrap();
    assert_eq!(
        plan.restore,
        "\
*nat
-D POSTROUTING -m comment --comment \"two words\" -j OURS
-I POSTROUTING 1 -m comment --comment \"two words\" -j OURS
COMMIT
"
    );
}

#[test]
fn a_second_jump_is_removed() {
    let listing = format!("{INSTALLED}-A POSTROUTING -m comment --comment \"two words\" -j OURS\n");
    let plan = plan_for(&listing, &spec(Place::Last)).unwrap();
    assert_eq!(
        plan.restore.matches("-D POSTROUTING").count(),
        2,
        "{}",
        plan.restore
    );
    assert_eq!(
        plan.restore.matches("-A POSTROUTING").count(),
        1,
        "{}",
        plan.restore
    );
}

#[test]
fn an_unwanted_chain_goes_with_every_jump_to_it_and_nothing_else() {
    let listing = format!("{INSTALLED}-A PREROUTING -s 1.2.3.4/32 -g OURS\n");
    let unwanted = ChainSpec {
        rules: None,
        ..spec(Place::Last)
    };
    let plan = plan_for(&listing, &unwanted).unwrap();
    assert_eq!(
        plan.restore,
        "\
*nat
-D POSTROUTING -m comment --comment \"two words\" -j OURS
-D PREROUTING -s 1.2.3.4/32 -g OURS
-F OURS
-X OURS
COMMIT
"
    );
    assert_eq!(plan_for(EMPTY, &unwanted), None);
}

#[test]
fn a_rendering_seen_after_writing_counts_as_the_rule() {
    let listing = INSTALLED.replace("10.0.0.0/8 -m comment", "10.0.0.0/255.0.0.0 -m comment");
    let listing = Listing::parse(&listing);
    let spec = spec(Place::Last);
    let rendering = listing.rendering(&spec).unwrap();
    let renderings = Renderings::from([(spec.name, rendering)]);
    assert_eq!(
        plan(IptablesTable::Nat, &listing, &[spec], &renderings),
        None
    );
}

#[test]
fn matches_on_every_address_are_listed_as_nothing() {
    assert_eq!(
        CanonicalRule::parse("-s 0.0.0.0/0 -j ACCEPT"),
        CanonicalRule::parse("-j ACCEPT")
    );
    assert_ne!(
        CanonicalRule::parse("! -s 0.0.0.0/0 -j ACCEPT"),
        CanonicalRule::parse("-j ACCEPT")
    );
}

#[test]
fn exact_deletion_leaves_similar_rules() {
    let listing = Listing::parse(
        "-A POSTROUTING -s 10.0.0.0/8 -d 10.0.0.0/8 -j RETURN\n\
         -A POSTROUTING -s 10.0.0.0/8 -d 10.0.0.0/8 -o eth0 -j RETURN\n",
    );
    let rules = [(
        IptablesTable::Nat,
        "POSTROUTING",
        "-s 10.0.0.0/8 -d 10.0.0.0/8 -j RETURN".to_owned(),
    )];
    assert_eq!(
        plan_deletion(IptablesTable::Nat, &listing, &rules).unwrap(),
        "*nat\n-D POSTROUTING -s 10.0.0.0/8 -d 10.0.0.0/8 -j RETURN\nCOMMIT\n"
    );
    assert_eq!(plan_deletion(IptablesTable::Filter, &listing, &rules), None);
}

#[test]
fn foreign_rules_and_policies_are_counted_without_ours() {
    let text = format!("{INSTALLED}-P FORWARD DROP\n");
    assert_eq!(Listing::parse(&text).foreign_rules(&[spec(Place::Last)]), 2);
    assert_eq!(Listing::parse(EMPTY).foreign_rules(&[]), 0);
}
