(* Stability of Vietoris-Rips complexes and of their connected components.

   f and g place the same points I in a metric space; e bounds how far each point moves. The complex at scale t, in the
   diameter convention, has the finite sets of diameter at most t as simplices.

   distortion        distances change by at most 2 e;
   interleaved       VR_t(f) is in VR_{t + 2e}(g), and the other way round, by the identity on points;
   components        at t + 2e g has no more connected components than f at t;
   deaths_stable     so the sorted deaths of dimension 0 differ by at most 2 e, one by one: matching them in order bounds
                     the bottleneck distance of the H0 diagrams, whose births are all 0.

   From the distortion on, only |d(f i, f j) - d(g i, g j)| <= 2e is used. *)
From mathcomp Require Import all_ssreflect all_algebra.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import GRing.Theory Num.Theory Order.Theory.
Local Open Scope ring_scope.

Section VietorisRips.
Variables (R : realDomainType) (E : Type) (d : E -> E -> R).
Hypothesis d_sym : forall x y, d x y = d y x.
Hypothesis triangle : forall x y z, d x z <= d x y + d y z.

Definition VR (I : finType) (h : I -> E) (t : R) : {set {set I}} :=
  [set s : {set I} | (s != set0) && [forall i, forall j, (i \in s) && (j \in s) ==> (d (h i) (h j) <= t)]].

(* points within t of each other; its connected components are those of the complex *)
Definition near (I : finType) (h : I -> E) (t : R) : rel I := [rel i j | d (h i) (h j) <= t].
Definition n_components (I : finType) (h : I -> E) (t : R) := n_comp (near h t) predT.

Section OneDirection.
Variables (I : finType) (f g : I -> E) (e : R).
Hypothesis moved : forall i, d (f i) (g i) <= e.

Lemma distortion i j : d (g i) (g j) <= d (f i) (f j) + (e + e).
Proof.
apply: (le_trans (triangle _ (f i) _)); rewrite [d (g i) _]d_sym.
apply: (@le_trans _ _ (e + (d (f i) (f j) + e))); last by rewrite addrCA addrA.
apply: ler_add; first exact: moved.
by apply: (le_trans (triangle _ (f j) _)); rewrite ler_add2l moved.
Qed.

Theorem included t : VR f t \subset VR g (t + (e + e)).
Proof.
apply/subsetP => s; rewrite !inE => /andP[-> /= /forallP h].
apply/forallP => i; apply/forallP => j; apply/implyP => ij.
apply: (le_trans (distortion i j)); rewrite ler_add2r.
by move/forallP/(_ j)/implyP: (h i); apply.
Qed.

Theorem components t : (n_components g (t + (e + e)) <= n_components f t)%N.
Proof.
have symf : connect_sym (near f t) by apply: sym_connect_sym => i j; rewrite /near /= [d (f i) _]d_sym.
have symg : connect_sym (near g (t + (e + e))) by apply: sym_connect_sym => i j; rewrite /near /= [d (g i) _]d_sym.
have wider i j : connect (near f t) i j -> connect (near g (t + (e + e))) i j.
  apply: connect_sub => {}i {}j ij; apply: connect1.
  by apply: (le_trans (distortion i j)); rewrite ler_add2r.
rewrite /n_components /n_comp_mem -(card_in_imset (f := fingraph.root (near f t))); last first.
  move=> i j; rewrite !inE !andbT => /eqP ri /eqP rj same.
  by rewrite -ri -rj; apply/(fingraph.rootP symg)/wider/(fingraph.rootP symf).
by apply: subset_leq_card; apply/subsetP => _ /imsetP[i _ ->]; rewrite !inE andbT roots_root.
Qed.
End OneDirection.

Theorem interleaved (I : finType) (f g : I -> E) e : (forall i, d (f i) (g i) <= e) -> forall t,
  (VR f t \subset VR g (t + (e + e))) /\ (VR g t \subset VR f (t + (e + e))).
Proof. by move=> moved t; split; apply: included => // i; rewrite d_sym. Qed.

(* Two sorted lists of one length whose tails interleave differ by at most c, place by place. *)
Lemma sorted_tails (a b : seq R) (c : R) : sorted <=%R a -> sorted <=%R b -> size a = size b ->
  (forall t, count (fun x => (t + c < x)%R) b <= count (fun x => (t < x)%R) a)%N ->
  forall i, (i < size a)%N -> nth 0 b i <= nth 0 a i + c.
Proof.
move=> sa sb size_ab tails i ia; rewrite leNgt; apply/negP => gap.
have := tails (nth 0 a i); apply/negP; rewrite -ltnNge.
have many : (size b - i <= count (fun x => (nth 0 a i + c < x)%R) b)%N.
  have -> : count (fun x => (nth 0 a i + c < x)%R) b =
    (count (fun x => (nth 0 a i + c < x)%R) (take i b) + count (fun x => (nth 0 a i + c < x)%R) (drop i b))%N.
    by rewrite -count_cat cat_take_drop.
  rewrite (_ : count _ (drop i b) = size b - i)%N ?leq_addl // -size_drop; apply/eqP; rewrite -all_count.
  apply/(all_nthP 0) => j; rewrite size_drop ltn_subRL => jb; rewrite nth_drop; apply: (lt_le_trans gap).
  by apply: (sorted_leq_nth le_trans le_refl 0 sb); rewrite ?inE ?leq_addr // -size_ab.
have few : (count (fun x => (nth 0 a i < x)%R) a <= size a - i.+1)%N.
  have -> : count (fun x => (nth 0 a i < x)%R) a =
    (count (fun x => (nth 0 a i < x)%R) (take i.+1 a) + count (fun x => (nth 0 a i < x)%R) (drop i.+1 a))%N.
    by rewrite -count_cat cat_take_drop.
  rewrite -size_drop (_ : count _ (take i.+1 a) = 0)%N ?count_size //; apply/eqP; rewrite -leqn0 leqNgt -has_count.
  apply/negP => /(has_nthP 0)[j]; rewrite size_takel // => ji; rewrite nth_take // ltNge => /negP; apply.
  by apply: (sorted_leq_nth le_trans le_refl 0 sa); rewrite ?inE // (leq_ltn_trans _ ia).
apply: leq_ltn_trans few _; apply: leq_trans many; rewrite -size_ab.
by rewrite subnSK.
Qed.

(* The deaths of dimension 0 of a cloud: at every scale one more component is left than deaths are to come. *)
Definition deaths_of (I : finType) (h : I -> E) (deaths : seq R) :=
  sorted <=%R deaths /\ forall t, (count (fun x => (t < x)%R) deaths).+1 = n_components h t.

Theorem deaths_stable (I : finType) (f g : I -> E) e (deaths_f deaths_g : seq R) :
  (forall i, d (f i) (g i) <= e) -> deaths_of f deaths_f -> deaths_of g deaths_g -> size deaths_f = size deaths_g ->
  forall i, (i < size deaths_f)%N -> `|nth 0 deaths_f i - nth 0 deaths_g i| <= e + e.
Proof.
move=> moved [sf cf] [sg cg] same i i_lt.
have moved' j : d (g j) (f j) <= e by rewrite d_sym.
rewrite ler_distl; apply/andP; split.
- rewrite ler_subl_addr; apply: (sorted_tails sf sg same) => // t.
  by rewrite -ltnS cf cg components.
- apply: (sorted_tails sg sf (esym same)); last by rewrite -same.
  by move=> t; rewrite -ltnS cf cg components.
Qed.
End VietorisRips.

Print Assumptions interleaved.
Print Assumptions deaths_stable.
