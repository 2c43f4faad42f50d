(* Ranks among exchangeable scores: the counting behind conformal coverage.

   Scores lie in a total order (leT), ties allowed. C is the set of cases that are compared: all of them, or those of one
   class. A case of C is covered at k if fewer than k cases of C have a score strictly below its own: its rank, counted
   from the least, is at most k.

   counting        at least k of the cases are covered, if there are k;
   counting_exact  exactly k, if no two scores tie;
   quantile_rank   comparing with the k-th smallest of the other scores is counting those below. *)
From mathcomp Require Import all_ssreflect.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.

Section Order.
Variables (T : Type) (leT : rel T).
Hypothesis leT_total : total leT.
Hypothesis leT_trans : transitive leT.

Definition below x y := ~~ leT y x.

Lemma leT_refl : reflexive leT.
Proof. by move=> x; case/orP: (leT_total x x). Qed.

Section Counting.
Variables (I : finType) (C : {set I}) (score : I -> T).

Definition n_below (i : I) := #|[set j in C | below (score j) (score i)]|.
Definition covered k := [set i in C | n_below i < k].

Let leI : rel I := [rel i j | leT (score i) (score j)].
Let leI_total : total leI. Proof. by move=> i j; exact: leT_total. Qed.
Let leI_trans : transitive leI. Proof. by move=> j i l; exact: leT_trans. Qed.
Let leI_refl : reflexive leI. Proof. by move=> i; exact: leT_refl. Qed.

(* the cases of C in ascending order of their scores *)
Let ordered := sort leI (enum C).

Let size_ordered : size ordered = #|C|. Proof. by rewrite size_sort -cardE. Qed.
Let uniq_ordered : uniq ordered. Proof. by rewrite sort_uniq enum_uniq. Qed.
Let mem_ordered i : (i \in ordered) = (i \in C). Proof. by rewrite mem_sort mem_enum. Qed.
Let sorted_ordered : sorted leI ordered. Proof. exact: sort_sorted. Qed.

(* what lies strictly below a case comes before it *)
Lemma n_below_index i : i \in C -> n_below i <= index i ordered.
Proof.
move=> iC; suff sub : [set j in C | below (score j) (score i)] \subset [set j in take (index i ordered) ordered].
  apply: (leq_trans (subset_leq_card sub)).
  by rewrite cardsE (leq_trans (card_size _)) // size_take; case: ltnP.
apply/subsetP => j; rewrite !inE => /andP[jC jlt].
rewrite in_take ?mem_ordered // ltnNge; apply/negP => ij.
move/negP: jlt; apply.
by apply: (sorted_leq_index leI_trans leI_refl sorted_ordered i j _ _ ij); rewrite mem_ordered.
Qed.

Theorem counting k : k <= #|C| -> k <= #|covered k|.
Proof.
move=> kC.
have sub : [set j in take k ordered] \subset covered k.
  apply/subsetP => j; rewrite !inE => jt.
  have jC : j \in C by rewrite -mem_ordered; exact: mem_take jt.
  by rewrite jC; apply: leq_ltn_trans (n_below_index jC) _; rewrite -in_take ?mem_ordered.
apply: leq_trans (subset_leq_card sub).
have -> : #|[set j in take k ordered]| = size (take k ordered).
  by rewrite cardsE; apply/card_uniqP; exact: take_uniq uniq_ordered.
by rewrite size_take size_ordered; case: ltnP.
Qed.

(* Without ties the order is strict, and what comes before a case lies strictly below it. *)
Hypothesis no_ties : {in C &, forall i j, leT (score i) (score j) -> leT (score j) (score i) -> i = j}.

Lemma n_below_exact i : i \in C -> n_below i = index i ordered.
Proof.
move=> iC; apply/eqP; rewrite eqn_leq n_below_index //=.
have -> : index i ordered = #|[set j in take (index i ordered) ordered]|.
  rewrite cardsE; have /card_uniqP -> : uniq (take (index i ordered) ordered) by exact: take_uniq.
  by rewrite size_take; have:= index_size i ordered; rewrite leq_eqVlt => /orP[/eqP ->|->//]; rewrite ltnn.
apply: subset_leq_card; apply/subsetP => j; rewrite !inE => jt.
have jC : j \in C by rewrite -mem_ordered; exact: mem_take jt.
have ji : index j ordered < index i ordered by rewrite -in_take ?mem_ordered.
rewrite jC /=; apply/negP => ij.
have le_ji : leT (score j) (score i).
  by apply: (sorted_leq_index leI_trans leI_refl sorted_ordered j i _ _ (ltnW ji)); rewrite mem_ordered.
by move: ji; rewrite (no_ties iC jC ij le_ji) ltnn.
Qed.

Theorem counting_exact k : k <= #|C| -> #|covered k| = k.
Proof.
move=> kC; apply/eqP; rewrite eqn_leq counting // andbT.
have sub : covered k \subset [set j in take k ordered].
  apply/subsetP => j; rewrite !inE => /andP[jC jk].
  by rewrite in_take ?mem_ordered // -n_below_exact.
apply: leq_trans (subset_leq_card sub) _.
by rewrite cardsE (leq_trans (card_size _)) // size_take size_ordered; case: ltnP.
Qed.
End Counting.

(* A new score is at most the k-th smallest of the calibration scores exactly if fewer than k of them are below it. *)
Theorem quantile_rank (calibration : seq T) (x : T) k : 0 < k -> k <= size calibration ->
  leT x (nth x (sort leT calibration) k.-1) = (count (fun y => below y x) calibration < k).
Proof.
move=> k0 kn; rewrite -(size_filter _ calibration) -(size_sort leT) -filter_sort // size_filter.
set s := sort leT calibration.
have srt : sorted leT s by exact: sort_sorted.
have size_s : size s = size calibration by rewrite size_sort.
have ks : k.-1 < size s by rewrite size_s prednK.
have -> : count (fun y => below y x) s =
  count (fun y => below y x) (take k.-1 s) + count (fun y => below y x) (drop k.-1 s).
  by rewrite -count_cat cat_take_drop.
apply/idP/idP => [xq | few].
  have none : count (fun y => below y x) (drop k.-1 s) = 0.
    apply/eqP; rewrite -leqn0 leqNgt -has_count; apply/negP => /(has_nthP x)[i i_lt].
    rewrite nth_drop => /negP; apply; apply: leT_trans xq _.
    apply: (sorted_leq_nth leT_trans leT_refl x srt); rewrite ?inE ?leq_addr //.
    by move: i_lt; rewrite size_drop ltn_subRL.
  by rewrite none addn0 (leq_ltn_trans (count_size _ _)) // size_take ks prednK.
case le_xq: (leT x _) => //; exfalso; move: few; rewrite ltnNge => /negP; apply.
have all_below : all (fun y => below y x) (rcons (take k.-1 s) (nth x s k.-1)).
  rewrite all_rcons /below le_xq /=; apply/(all_nthP x) => i; rewrite size_take ks => ik.
  rewrite nth_take //; apply/negP => xi; move/negP: le_xq; apply.
  by apply: leT_trans xi _; apply: (sorted_leq_nth leT_trans leT_refl x srt); rewrite ?inE ?(ltn_trans ik) // ltnW.
move: all_below; rewrite all_count -cats1 count_cat size_cat size_take ks addn1 prednK //= addn0 => /eqP/esym all_k.
by rewrite [X in X <= _]all_k leq_add2l (drop_nth x) //= leq_addr.
Qed.
End Order.

Print Assumptions counting.
Print Assumptions counting_exact.
Print Assumptions quantile_rank.
