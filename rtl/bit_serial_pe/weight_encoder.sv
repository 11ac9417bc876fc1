// One bit-serial term of a weight: a signed power of two, or nothing (after BitMoD, HPCA'25, section IV-A).
//
//   weight = sum over its terms of  (-1)^sign_o * mantissa_o * 2^(exponent_o - 1)
//
//   format_i  type  terms  code_i
//   0         INT4  2      two's complement in the low bits; what is above them is ignored
//   1         INT5  3      term t is the Booth digit t of radix 4: -2 .. 2 times 4^t
//   2         INT6  3
//   3         INT8  4
//   4 (6)     FP3   2      sign and exponent 0 .. 3:  0, 1, 2, 4
//   5 (7)     FP4   2      sign, exponent and one fraction bit:  0, 0.5, 1, 1.5, 2, 3, 4, 6
//
// The code of -0 means the special value of the group: special_i = {distant, negative}, FP3 3 or 6 (distant),
// FP4 5 or 8 (distant). Every value of FP3 and FP4 is a sum of two terms; a term that is not needed is zero.
`default_nettype none

module weight_encoder (
    input  wire  [7:0] code_i,
    input  wire  [2:0] format_i,
    input  wire  [1:0] special_i,
    input  wire  [1:0] term_i,     // 0, 1, … terms - 1
    output logic       sign_o,
    output logic [3:0] exponent_o,
    output logic       mantissa_o
);

  // -- integers: Booth digits ------------------------------------------------------------------------
  logic [7:0] extended;
  assign extended = format_i[1:0] == 2'd0 ? {{4{code_i[3]}}, code_i[3:0]}
                  : format_i[1:0] == 2'd1 ? {{3{code_i[4]}}, code_i[4:0]}
                  : format_i[1:0] == 2'd2 ? {{2{code_i[5]}}, code_i[5:0]} : code_i;

  logic [2:0] digit;
  logic       two;
  assign digit = 3'({extended, 1'b0} >> {term_i, 1'b0});
  assign two = digit == 3'b011 || digit == 3'b100;

  // -- floats: the leading one, then the fraction bit; the special value has terms of its own -----------
  logic is_fp3, negative, fraction, is_special, distant;
  logic [1:0] exponent;
  assign is_fp3 = !format_i[0];
  assign negative = is_fp3 ? code_i[2] : code_i[3];
  assign exponent = is_fp3 ? code_i[1:0] : code_i[2:1];
  assign fraction = !is_fp3 && code_i[0];
  assign is_special = negative && exponent == 2'd0 && !fraction;
  assign distant = special_i[1];

  logic [2:0] first_exponent, second_exponent;
  logic first, second;
  assign first = is_special || exponent != 2'd0 || fraction;
  assign first_exponent = is_special ? 3'd2 + 3'(!is_fp3) + 3'(distant) : {1'b0, exponent};
  assign second = is_special ? is_fp3 || !distant : exponent != 2'd0 && fraction;
  assign second_exponent = is_special && !is_fp3 ? 3'd1 : first_exponent - 3'd1;  // 5 = 4 + 1; else neighbours

  always_comb begin
    if (format_i[2]) begin
      sign_o = is_special ? special_i[0] : negative;
      exponent_o = {1'b0, term_i[0] ? second_exponent : first_exponent};
      mantissa_o = term_i[0] ? second : first;
    end else begin
      sign_o = digit[2];
      exponent_o = {1'b0, term_i, 1'b0} + 4'd1 + 4'(two);
      mantissa_o = digit != 3'b000 && digit != 3'b111;
    end
  end

endmodule

`default_nettype wire
