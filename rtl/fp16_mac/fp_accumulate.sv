// A floating-point adder with 24 bits of significand, to nearest, ties to even. Combinational.
//
//   total = acc + addend       acc has 24 bits of significand, the addend WIDTH, both normalised; zero is +0
//
// An exponent of 0 means zero, 127 an infinity or, with the bit below the leading one, a NaN. Others are 1 to 122,
// those of binary32 less a constant that only the sum's reader needs: nothing here underflows or overflows
// (fp16_mac.sv says why).
//
// The operand of the lesser magnitude is shifted right; what falls off the end is a sticky bit. Two more bits
// than the result has suffice below it: by two places or more, at most one leading bit cancels; by one place the
// sticky bit is the bit that was shifted out, by none nothing is lost.
`default_nettype none

module fp_accumulate #(
    parameter int WIDTH = 22
) (
    input  wire              acc_sign_i,
    input  wire  [      6:0] acc_exponent_i,
    input  wire  [     22:0] acc_fraction_i,
    input  wire              sign_i,
    input  wire  [      6:0] exponent_i,
    input  wire  [WIDTH-1:0] significand_i,
    output logic             sign_o,
    output logic [      6:0] exponent_o,
    output logic [     22:0] fraction_o
);

  localparam int Frame = WIDTH > 26 ? WIDTH : 26;
  localparam int Bits = $clog2(Frame);

  logic [Frame-1:0] acc, addend, greater, lesser;
  logic swap;
  assign acc = {acc_exponent_i != '0, acc_fraction_i, {(Frame - 24) {1'b0}}};
  assign addend = Frame'(significand_i) << (Frame - WIDTH);
  assign swap = {exponent_i, addend} > {acc_exponent_i, acc};
  assign greater = swap ? addend : acc;
  assign lesser = swap ? acc : addend;

  logic [6:0] exponent, distance;
  assign exponent = swap ? exponent_i : acc_exponent_i;
  assign distance = exponent - (swap ? acc_exponent_i : exponent_i);

  logic [Frame-1:0] shifted;
  logic sticky;
  always_comb begin
    shifted = lesser;
    sticky  = 1'b0;
    for (int b = 0; b < Bits; b++) begin
      if (distance[b]) begin
        sticky  = sticky || shifted << (Frame - (1 << b)) != '0;
        shifted = shifted >> (1 << b);
      end
    end
    if (distance >> Bits != '0) begin
      sticky  = lesser[Frame-1];  // set unless it is zero
      shifted = '0;
    end
  end

  // The greater one is first, so a difference is not negative. The top bit is the carry of a sum.
  logic subtract;
  logic [Frame:0] turned;
  logic [Frame+1:0] total, normal;
  logic [$clog2(Frame+2)-1:0] count;
  assign subtract = acc_sign_i ^ sign_i;
  assign turned = {shifted, sticky} ^ {(Frame + 1) {subtract}};
  assign total = {1'b0, greater, 1'b0} + {subtract, turned} + (Frame + 2)'(subtract);
  fp_normalise #(
      .WIDTH(Frame + 2)
  ) u_normalise (
      .value_i(total),
      .value_o(normal),
      .count_o(count)
  );

  logic nonzero, up;
  logic [29:0] rounded;  // a carry out of the fraction belongs into the exponent
  assign nonzero = normal[Frame+1];
  assign up = normal[Frame-23] && (normal[Frame-22] || normal[Frame-24:0] != '0);
  assign rounded = {exponent + 7'd1 - 7'(count), normal[Frame:Frame-22]} + 30'(up);

  logic acc_special, special, not_a_number;
  assign acc_special = acc_exponent_i == 7'd127;
  assign special = acc_special || exponent_i == 7'd127;
  assign not_a_number = greater[Frame-2] || (acc_special && exponent_i == 7'd127 && (subtract || lesser[Frame-2]));

  assign sign_o = (swap ? sign_i : acc_sign_i) && (nonzero || special);
  assign exponent_o = special ? 7'd127 : nonzero ? rounded[29:23] : 7'd0;
  assign fraction_o = {special ? not_a_number : rounded[22], rounded[21:0]};

endmodule

`default_nettype wire
