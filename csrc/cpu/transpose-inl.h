// transpose of kLanes x kLanes words in registers: 4 x 4 within the 128-bit groups of four rows,
// then the groups among the rows.

#if defined(__clang__)
#define TESSERA_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define TESSERA_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, I{__VA_ARGS__})
#endif

#if TESSERA_LANES == 4
#define TESSERA_LOW32 0, 4, 1, 5
#define TESSERA_HIGH32 2, 6, 3, 7
#define TESSERA_LOW64 0, 1, 4, 5
#define TESSERA_HIGH64 2, 3, 6, 7
#elif TESSERA_LANES == 8
#define TESSERA_LOW32 0, 8, 1, 9, 4, 12, 5, 13
#define TESSERA_HIGH32 2, 10, 3, 11, 6, 14, 7, 15
#define TESSERA_LOW64 0, 1, 8, 9, 4, 5, 12, 13
#define TESSERA_HIGH64 2, 3, 10, 11, 6, 7, 14, 15
#else
#define TESSERA_LOW32 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define TESSERA_HIGH32 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#define TESSERA_LOW64 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define TESSERA_HIGH64 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#endif

TESSERA_INLINE void transpose(I (&rows)[kLanes]) {
  I t[kLanes];
  for (int i = 0; i < kLanes; i += 4) {
    const I a = TESSERA_SHUFFLE(rows[i], rows[i + 1], TESSERA_LOW32);
    const I b = TESSERA_SHUFFLE(rows[i], rows[i + 1], TESSERA_HIGH32);
    const I c = TESSERA_SHUFFLE(rows[i + 2], rows[i + 3], TESSERA_LOW32);
    const I d = TESSERA_SHUFFLE(rows[i + 2], rows[i + 3], TESSERA_HIGH32);
    t[i] = TESSERA_SHUFFLE(a, c, TESSERA_LOW64);
    t[i + 1] = TESSERA_SHUFFLE(a, c, TESSERA_HIGH64);
    t[i + 2] = TESSERA_SHUFFLE(b, d, TESSERA_LOW64);
    t[i + 3] = TESSERA_SHUFFLE(b, d, TESSERA_HIGH64);
  }
#if TESSERA_LANES == 4
  for (int i = 0; i < 4; ++i) rows[i] = t[i];
#elif TESSERA_LANES == 8
  for (int i = 0; i < 4; ++i) {
    rows[i] = TESSERA_SHUFFLE(t[i], t[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    rows[i + 4] = TESSERA_SHUFFLE(t[i], t[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
#else
#define TESSERA_GROUPS_01 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define TESSERA_GROUPS_23 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define TESSERA_GROUPS_02 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define TESSERA_GROUPS_13 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
  for (int i = 0; i < 4; ++i) {
    const I a = TESSERA_SHUFFLE(t[i], t[i + 4], TESSERA_GROUPS_01);
    const I b = TESSERA_SHUFFLE(t[i + 8], t[i + 12], TESSERA_GROUPS_01);
    const I c = TESSERA_SHUFFLE(t[i], t[i + 4], TESSERA_GROUPS_23);
    const I d = TESSERA_SHUFFLE(t[i + 8], t[i + 12], TESSERA_GROUPS_23);
    rows[i] = TESSERA_SHUFFLE(a, b, TESSERA_GROUPS_02);
    rows[i + 4] = TESSERA_SHUFFLE(a, b, TESSERA_GROUPS_13);
    rows[i + 8] = TESSERA_SHUFFLE(c, d, TESSERA_GROUPS_02);
    rows[i + 12] = TESSERA_SHUFFLE(c, d, TESSERA_GROUPS_13);
  }
#endif
}

// Lane i is the sum or the largest of the lanes of rows[i].
TESSERA_INLINE F reduce_add(F (&rows)[kLanes]) {
  I t[kLanes];
  for (int i = 0; i < kLanes; ++i) t[i] = (I)rows[i];
  transpose(t);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) t[i] = (I)((F)t[i] + (F)t[i + half]);
  return (F)t[0];
}

TESSERA_INLINE F reduce_max(F (&rows)[kLanes]) {
  I t[kLanes];
  for (int i = 0; i < kLanes; ++i) t[i] = (I)rows[i];
  transpose(t);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) t[i] = (I)max((F)t[i], (F)t[i + half]);
  return (F)t[0];
}
