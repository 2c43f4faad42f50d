(* Conformal coverage: what a uniformly random order of n + 1 scores gives the last of them.

   Exchangeable scores come in a uniformly random order, given what they are. So probabilities are counts of
   permutations p of the n + 1 cases, divided by their number, (n + 1)!; the case p puts last is the new one.

   coverage                    P(rank of the new score <= k) >= k / (n + 1), for k <= n + 1;
   coverage_exact              equality, if no two scores tie; so coverage is at most level + 1 / (n + 1);
   coverage_in_class           the same given the new case's class, ranks counted within the class. *)
From mathcomp Require Import all_ssreflect all_fingroup.
Require Import rank.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.

Section UniformPermutation.
Variable I : finType.

(* permutations that send i to a: as many for every a *)
Definition sending (i a : I) : {set {perm I}} := [set p : {perm I} | p i == a].

Lemma sending_le i a b : #|sending i a| <= #|sending i b|.
Proof.
rewrite -(card_imset (mem (sending i a)) (mulIg (tperm a b))).
apply: subset_leq_card; apply/subsetP => _ /imsetP[p pa ->].
by move: pa; rewrite !inE permM => /eqP ->; rewrite tpermL.
Qed.

Lemma sending_eq i a b : #|sending i a| = #|sending i b|.
Proof. by apply/eqP; rewrite eqn_leq !sending_le. Qed.

(* a uniformly random permutation puts i into A with probability #|A| / #|I| *)
Lemma uniform i (A : {set I}) : #|[set p : {perm I} | p i \in A]| * #|I| = #|A| * #|I|`!.
Proof.
have part (B : {set I}) a : #|[set p : {perm I} | p i \in B]| = #|B| * #|sending i a|.
  rewrite -sum1_card (partition_big (fun p : {perm I} => p i) (mem B)) /=; last by move=> p; rewrite inE.
  rewrite (eq_bigr (fun=> #|sending i a|)) => [|b bB]; last first.
    rewrite -(sending_eq i b a) -sum1_card; apply: eq_bigl => p; rewrite !inE.
    by case: eqP => [->|]; rewrite ?andbF // bB.
  by rewrite sum_nat_const.
have total a : #|I| * #|sending i a| = #|I|`!.
  have := part setT a; rewrite cardsT => <-.
  rewrite -cardsT -card_perm.
  by apply: eq_card => p; rewrite !inE; apply/esym/subsetP => x; rewrite inE.
by rewrite (part A i) -mulnA [_ * #|I|]mulnC total.
Qed.
End UniformPermutation.

Section Coverage.
Variables (T : Type) (leT : rel T).
Hypothesis leT_total : total leT.
Hypothesis leT_trans : transitive leT.
Variables (n : nat) (score : 'I_n.+1 -> T).

(* permutations after which the last case is covered at k, compared with the cases of C *)
Definition hits (C : {set 'I_n.+1}) k := [set p : 'S_n.+1 | p ord_max \in covered leT C score k].

Theorem coverage k : k <= n.+1 -> k * n.+1`! <= #|hits setT k| * n.+1.
Proof.
move=> kn; have := uniform (ord_max : 'I_n.+1) (covered leT setT score k).
by rewrite card_ord /hits => ->; rewrite leq_mul2r counting ?orbT // cardsT card_ord.
Qed.

Theorem coverage_exact k : k <= n.+1 -> (forall i j, leT (score i) (score j) -> leT (score j) (score i) -> i = j) ->
  #|hits setT k| * n.+1 = k * n.+1`!.
Proof.
move=> kn no_ties; have := uniform (ord_max : 'I_n.+1) (covered leT setT score k).
rewrite card_ord /hits => ->; rewrite counting_exact ?cardsT ?card_ord //.
by move=> i j _ _; exact: no_ties.
Qed.

(* The class of a case belongs to it as its score does. Among the permutations whose last case is of class C, at least
   k of #|C| cover it by ranks within the class. *)
Theorem coverage_in_class (C : {set 'I_n.+1}) k : k <= #|C| ->
  k * #|[set p : 'S_n.+1 | p ord_max \in C]| <= #|hits C k| * #|C|.
Proof.
move=> kC; have N_gt0 : 0 < #|'I_n.+1| by rewrite card_ord.
rewrite -(leq_pmul2r N_gt0) -mulnA uniform mulnA [X in _ <= X]mulnAC.
by rewrite (uniform ord_max (covered leT C score k)) [X in _ <= X]mulnAC !leq_mul2r counting ?orbT.
Qed.
End Coverage.

Print Assumptions coverage.
Print Assumptions coverage_exact.
Print Assumptions coverage_in_class.
